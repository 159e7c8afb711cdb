package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
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
	"strings"
	"time"

	"hearth/internal/blob/fileblob"
	"hearth/internal/config"
	"hearth/internal/driver"
	"hearth/internal/driver/gvisor"
	"hearth/internal/guest"
	"hearth/internal/guest/agentclient"
	"hearth/internal/hearth"
	"hearth/internal/netns"
	"hearth/internal/node/agent/shelf"
)

// stock makes machines with gVisor's own command line, from the checkpoints
// that the server restores.
type stock struct {
	dir      string
	driver   *gvisor.Driver
	network  *netns.Manager
	cgroup   string // parent of the machines'
	machines int
	warm     map[string]warmth // by template
}

// warmth is what a template's sandboxes are made of.
type warmth struct {
	resources hearth.Resources
	layer     string
	from      *driver.Checkpoint
}

// Ranges of host users that the server may have in use lie below stockUsers
// more than its own first one.
const (
	stockUsers  = 4096 * 65536
	stockCgroup = "/hearth-bench"
	stockRoot   = "/run/hearth/bench"
)

// references returns the maker of stock machines.
func (r *run) references(ctx context.Context) (*stock, error) {
	if r.stock != nil {
		return r.stock, nil
	}
	c := r.server.cfg
	images, err := filepath.Glob(filepath.Join(c.Data, "guest", "guest-*.erofs"))
	if err != nil || len(images) == 0 {
		return nil, hearth.Wrap(hearth.NotFound, err, "the server has no image of its guest daemon")
	}
	s := &stock{
		dir: filepath.Join(r.dir, "stock"), cgroup: fmt.Sprintf("%s%d", stockCgroup, os.Getpid()), warm: map[string]warmth{},
	}
	if s.driver, err = gvisor.New(gvisor.Config{
		Root: fmt.Sprintf("%s%d", stockRoot, os.Getpid()), Guest: images[0],
		CgroupParent: s.cgroup, UIDBase: uint32(c.Node.SubUIDBase + stockUsers),
	}); err != nil {
		return nil, err
	}
	if s.network, err = stockNetwork(ctx, c); err != nil {
		return nil, err
	}
	r.stock = s
	return s, os.Mkdir(s.dir, 0o711)
}

func stockNetwork(ctx context.Context, c *config.Config) (*netns.Manager, error) {
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

func (s *stock) close(ctx context.Context) error {
	return errors.Join(s.driver.Purge(), s.network.Remove(ctx))
}

// learn finds out what a template's sandboxes are made of, by making one.
func (r *run) learn(ctx context.Context, template string) (warmth, error) {
	s, err := r.references(ctx)
	if err != nil {
		return warmth{}, err
	}
	if w, ok := s.warm[template]; ok {
		return w, nil
	}
	sb, err := r.create(ctx, template)
	if err != nil {
		return warmth{}, err
	}
	defer r.kill(ctx, sb)
	m, err := r.server.of(sb.ID)
	if err != nil {
		return warmth{}, err
	}
	w := warmth{resources: m.Resources}
	if w.layer, err = rootImage(m.Handle.Dir); err != nil {
		return w, err
	}
	snapshots := shelf.New(fileblob.View(filepath.Join(r.server.cfg.Data, "blobs")))
	snap, _, err := snapshots.Find(ctx, m.Restored)
	if err != nil {
		return w, err
	}
	dir := filepath.Join(s.dir, template)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return w, err
	}
	if w.from, err = snapshots.Lay(ctx, snap, dir); err != nil {
		return w, err
	}
	s.warm[template] = w
	return w, nil
}

// rootImage reads from a machine's bundle which image its root is.
func rootImage(dir string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "bundle", "config.json"))
	if err != nil {
		return "", err
	}
	var bundle struct{ Annotations map[string]string }
	if err := json.Unmarshal(raw, &bundle); err != nil {
		return "", err
	}
	image := bundle.Annotations["dev.gvisor.spec.rootfs.source"]
	if image == "" {
		return "", errors.New("the machine's bundle names no root image")
	}
	return image, nil
}

// stockMachine is one machine of the reference.
type stockMachine struct {
	s       *stock
	id, dir string
	slot    *netns.Slot
	args    []string
}

// prepare does what a server has done before a start: network and bundle.
func (s *stock) prepare(ctx context.Context, w warmth) (*stockMachine, error) {
	s.machines++
	m := &stockMachine{s: s, id: fmt.Sprintf("bench-%d-%d", os.Getpid(), s.machines)}
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
			ID: m.id, Dir: m.dir, Layers: []string{w.layer}, Resources: w.resources, Net: n, Hostname: m.id, From: w.from,
		})
	}
	if err != nil {
		return nil, errors.Join(err, m.close(ctx))
	}
	return m, nil
}

func (m *stockMachine) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	err := m.s.driver.Sweep(ctx, driver.Handle{Driver: gvisor.Name, ID: m.id, Dir: m.dir})
	if m.slot != nil {
		err = errors.Join(err, m.s.network.Release(ctx, m.slot.Index))
	}
	return err
}

// start runs gVisor's command line to its end.
func (m *stockMachine) start(ctx context.Context) error { return quiet(ctx, self, m.args...) }

// quiet runs a program; what it complains of is in the error. The output is a
// file because a detached machine inherits it.
func quiet(ctx context.Context, name string, args ...string) error {
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

// dial connects as soon as something listens. The first packet to a machine
// that was just restored may be lost, so attempts are short.
func (m *stockMachine) dial(ctx context.Context, port uint16) (net.Conn, error) {
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

func (m *stockMachine) do(ctx context.Context, method string, port uint16, path string, body []byte) (string, error) {
	c := isolated(func(ctx context.Context, _, _ string) (net.Conn, error) { return m.dial(ctx, port) })
	req, err := http.NewRequestWithContext(ctx, method, "http://"+m.id+path, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Access-Token", stockToken)
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

// answer waits for the first HTTP answer.
func (m *stockMachine) answer(ctx context.Context) error {
	_, err := m.do(ctx, http.MethodGet, guest.Port, "/health", nil)
	return err
}

const stockToken = "bench" // of machines that nobody else can reach

// unseal lets the daemon serve, as a server does.
func (m *stockMachine) unseal(ctx context.Context) error {
	seed := make([]byte, 32)
	rand.Read(seed) // never fails
	return agentclient.New(m.dial, rand.Text()).Init(ctx, guest.InitRequest{
		Now: time.Now(), Seed: seed, Token: stockToken, SandboxID: m.id, TemplateID: m.id, User: "user",
	})
}

// cell runs the first cell.
func (m *stockMachine) cell(ctx context.Context) error {
	text, err := m.do(ctx, http.MethodPost, guest.CodePort, "/execute", []byte(`{"code":"`+cellCode+`"}`))
	if err == nil && !strings.Contains(text, cellResult) {
		err = fmt.Errorf("first cell: %q: %w", text, errUnexpected)
	}
	return err
}
