// Package daemon runs the guest daemon as a program of this host: row 15.
package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"hearth/internal/guest"
	"hearth/internal/guest/agentclient"
	"hearth/internal/guest/embedded"
	"hearth/internal/hearth"
)

// user is nobody: the daemon is anybody's on the host until its Init.
const (
	user     = "nobody"
	userID   = 65534
	commands = 10
	limit    = 30 * time.Second
)

// Resident runs the guest daemon as a program of this host, lets it do what it does
// in a new sandbox, and returns what is resident of it then. The kernel in a
// gVisor sandbox tells something else: what it has set aside, in pieces of 2 MiB,
// and a mapped file as a whole.
func Resident(ctx context.Context) (anonymous, file int64, err error) {
	bin, err := embedded.Binary()
	if err != nil {
		return 0, 0, err
	}
	dir, err := os.MkdirTemp("", "hearth-bench-")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "hearth-guest")
	if err := errors.Join(os.WriteFile(program, bin, 0o755), os.Chmod(dir, 0o755)); err != nil {
		return 0, 0, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, 0, err
	}
	address := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, hearth.Errorf(hearth.DeadlineExceeded, "the guest daemon did not serve ten commands within %s", limit))
	cmd := exec.CommandContext(ctx, program, "-listen", address, "-machine=false", "-code", filepath.Join(dir, "none"))
	cmd.Dir = "/"
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: userID, Gid: userID}}
	}
	if err := cmd.Start(); err != nil {
		cancel()
		return 0, 0, err
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // killed, as it should be
	}()
	if err := live(ctx, address); err != nil {
		return 0, 0, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for name, into := range map[string]*int64{"RssAnon:": &anonymous, "RssFile:": &file} {
		_, rest, _ := strings.Cut(string(status), name)
		kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		if *into, err = strconv.ParseInt(kib, 10, 64); err != nil {
			return 0, 0, hearth.Wrap(hearth.Internal, err, "the host's kernel does not tell %s", name)
		}
		*into <<= 10
	}
	return anonymous, file, nil
}

// live lets a daemon do what it does for a new sandbox and its first commands.
func live(ctx context.Context, address string) error {
	dial := func(ctx context.Context, _ uint16) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}
	host := agentclient.New(dial, rand.Text())
	if err := host.Ready(ctx); err != nil {
		return err
	}
	token := rand.Text()
	seed := make([]byte, 32)
	_, _ = rand.Read(seed) // never fails
	if err := host.Init(ctx, guest.InitRequest{Now: time.Now(), Seed: seed, Token: token, SandboxID: "bench", User: user, Workdir: "/"}); err != nil {
		return err
	}
	inside := agentclient.NewUser(dial, token)
	for range commands {
		exit, err := inside.Run(ctx, agentclient.RunRequest{Cmd: "true", User: user}, nil)
		if err != nil || exit != 0 {
			return errors.Join(err, fmt.Errorf("a command of the guest daemon ended with %d", exit))
		}
	}
	return nil
}
