// Package stock makes machines with gVisor's own command line from the checkpoints
// that a server made of its templates: the reference that benchmarks put beside
// Hearth's figures. The command line is that of a program built with gVisor as it is
// published, from that program's own checkpoints, or this program's.
package stock

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hearth/internal/config"
	"hearth/internal/driver"
	"hearth/internal/driver/gvisor"
	"hearth/internal/guest"
	"hearth/internal/guest/agentclient"
	"hearth/internal/hearth"
	"hearth/internal/netns"
)

// Maker makes machines. Call Close when they are closed.
type Maker struct {
	dir      string
	driver   *gvisor.Driver
	network  *netns.Manager
	cgroup   string // parent of the machines'
	machines int
}

// Template is what a template's sandboxes are made of, and by which program.
type Template struct {
	Program   Program
	Resources hearth.Resources
	Layer     string // absolute path of the root image
	From      *driver.Checkpoint
}

// Ranges of host users that the server may have in use lie below users more
// than its own first one.
const (
	users    = 4096 * 65536
	cgroup   = "/hearth-bench"
	root     = "/run/hearth/bench"
	self     = "/proc/self/exe"
	stopTime = 30 * time.Second
)

// New returns a maker that works in dir, which does not exist yet, beside the
// server of configuration c.
func New(ctx context.Context, c *config.Config, dir string) (*Maker, error) {
	images, err := filepath.Glob(filepath.Join(c.Data, "guest", "guest-*.erofs"))
	if err != nil || len(images) == 0 {
		return nil, hearth.Wrap(hearth.NotFound, err, "the server has no image of its guest daemon")
	}
	s := &Maker{dir: dir, cgroup: fmt.Sprintf("%s%d", cgroup, os.Getpid())}
	if s.driver, err = gvisor.New(gvisor.Config{
		Root: fmt.Sprintf("%s%d", root, os.Getpid()), Guest: images[0],
		CgroupParent: s.cgroup, UIDBase: uint32(c.Node.SubUIDBase + users),
	}); err != nil {
		return nil, err
	}
	if s.network, err = network(ctx, c); err != nil {
		return nil, err
	}
	return s, os.Mkdir(s.dir, 0o711)
}

func network(ctx context.Context, c *config.Config) (*netns.Manager, error) {
	prefix, err := netip.ParsePrefix(c.Network.Prefix)
	if err != nil {
		return nil, err
	}
	m, err := netns.New(netns.Config{Name: fmt.Sprintf("b%d", os.Getpid()%10000), Prefix: prefix, ReadyMax: -1}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return m, m.Open(ctx)
}

// Close removes what the maker holds on the host.
func (s *Maker) Close(ctx context.Context) error {
	return errors.Join(s.driver.Purge(), s.network.Remove(ctx))
}

// Machine is one machine of the reference.
type Machine struct {
	s       *Maker
	id, dir string
	slot    *netns.Slot
	program Program
	args    []string
}

// Prepare does what a server has done before a start: network and bundle.
func (s *Maker) Prepare(ctx context.Context, t Template) (*Machine, error) {
	s.machines++
	m := &Machine{s: s, program: t.Program, id: fmt.Sprintf("bench-%d-%d", os.Getpid(), s.machines)}
	m.dir = filepath.Join(s.dir, m.id)
	if err := os.Mkdir(m.dir, 0o711); err != nil {
		return nil, err
	}
	var err error
	if m.slot, err = s.network.Acquire(ctx); err == nil {
		err = s.network.SetPolicy(ctx, m.slot.Index, netns.Policy{})
	}
	if err == nil {
		n := driver.Attachment{NetNS: m.slot.NetNS, Guest: m.slot.Guest, Gateway: m.slot.Gateway, Device: m.slot.Device}
		m.args, err = s.driver.Reference(driver.Spec{
			ID: m.id, Dir: m.dir, Layers: []string{t.Layer}, Resources: t.Resources, Net: n, Hostname: m.id, From: t.From,
		})
	}
	if err != nil {
		return nil, errors.Join(err, m.Close(ctx))
	}
	return m, nil
}

// Close kills the machine and frees what it held.
func (m *Machine) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	err := m.s.driver.Sweep(ctx, driver.Handle{Driver: gvisor.Name, ID: m.id, Dir: m.dir})
	if m.slot != nil {
		err = errors.Join(err, m.s.network.Release(ctx, m.slot.Index))
	}
	return err
}

// Start runs gVisor's command line to its end.
func (m *Machine) Start(ctx context.Context) error {
	return Quiet(ctx, m.program.Path(), m.args...)
}

// Checkpoint writes the machine to dir and ends it, as gVisor's command line does.
func (m *Machine) Checkpoint(ctx context.Context, dir string) error {
	at := slices.Index(m.args, "restore")
	if at < 0 {
		return errors.New("the machine was not restored")
	}
	return Quiet(ctx, m.program.Path(), slices.Concat(m.args[:at], []string{"checkpoint", "--image-path=" + dir, m.id})...)
}

// Quiet runs a program; what it complains of is in the error. The output is a
// file because a detached machine inherits it.
func Quiet(ctx context.Context, name string, args ...string) error {
	out, err := os.CreateTemp("", "hearth-bench-out-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		text := make([]byte, 2000)
		n, _ := out.ReadAt(text, 0)
		return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, strings.TrimSpace(string(text[:n])))
	}
	return nil
}

// Dial connects as soon as something listens. The first packet to a machine
// that was just restored may be lost, so attempts are short.
func (m *Machine) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	address := netip.AddrPortFrom(m.slot.Guest.Addr(), port).String()
	pause := time.NewTicker(time.Millisecond)
	defer pause.Stop()
	for {
		conn, err := (&net.Dialer{Timeout: 50 * time.Millisecond}).DialContext(ctx, "tcp", address)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), err)
		case <-pause.C:
		}
	}
}

// Do asks a server inside and returns its answer.
func (m *Machine) Do(ctx context.Context, method string, port uint16, path string, body []byte) (string, error) {
	c := isolated(func(ctx context.Context, _, _ string) (net.Conn, error) { return m.Dial(ctx, port) })
	req, err := http.NewRequestWithContext(ctx, method, "http://"+m.id+path, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Access-Token", token)
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %w", method, path, resp.Status, errUnexpected)
	}
	return string(text), err
}

// Answer waits for the first HTTP answer.
func (m *Machine) Answer(ctx context.Context) error {
	_, err := m.Do(ctx, http.MethodGet, guest.Port, "/health", nil)
	return err
}

const token = "bench" // of machines that nobody else can reach

// Unseal lets the daemon serve, as a server does.
func (m *Machine) Unseal(ctx context.Context) error {
	seed := make([]byte, 32)
	rand.Read(seed) // never fails
	return agentclient.New(m.Dial, rand.Text()).Init(ctx, guest.InitRequest{
		Now: time.Now(), Seed: seed, Token: token, SandboxID: m.id, TemplateID: m.id, User: "user",
	})
}

// Group is the machine's cgroup, below the hierarchies' roots.
func (m *Machine) Group() string { return filepath.Join(m.s.cgroup, m.id) }

// isolated returns a client that shares no connection with another.
func isolated(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
}

var errUnexpected = errors.New("the machine gave another answer than it should")
