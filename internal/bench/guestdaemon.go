package bench

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

	"hearth/client"
	"hearth/internal/bench/figure"
	"hearth/internal/guest"
	"hearth/internal/guest/agentclient"
	"hearth/internal/guest/embedded"
	"hearth/internal/hearth"
)

// This file measures the guest daemon: row 15.

const daemonIdle = 10 * time.Second

// guestDaemon is row 15. In a sandbox the daemon is what started the command that
// looks; process 1, which keeps it, is the same program, and its time counts, too.
func (r *run) guestDaemon(ctx context.Context) ([]figure.Figure, error) {
	size, inside := figure.Mebibytes("guest daemon, its program"), figure.Mebibytes("the same as the sandbox's kernel tells it")
	resident, file := figure.Mebibytes("guest daemon, resident, on this host's kernel"), figure.Mebibytes("of that its program's file")
	anonymous, mapped, err := onLinux(ctx)
	if err != nil {
		return nil, err
	}
	resident.Bytes(anonymous + mapped)
	file.Bytes(mapped)
	cpu := figure.In("%", "guest daemon, CPU while idle")
	err = r.within(ctx, baseTemplate, func(sb *client.Sandbox) error {
		ask := func(line string) (int64, error) {
			res, err := sb.Commands.Run(ctx, line, client.RunOptions{User: "root"})
			if err != nil {
				return 0, err
			}
			return strconv.ParseInt(strings.TrimSpace(res.Stdout), 10, 64)
		}
		for _, q := range []struct {
			line string
			into *figure.Samples
			unit int64
		}{
			{"stat -L -c %s /proc/1/exe", size, 1},
			{"awk '/^VmRSS/{print $2}' /proc/$PPID/status", inside, 1 << 10},
		} {
			n, err := ask(q.line)
			if err != nil {
				return err
			}
			q.into.Bytes(n * q.unit)
		}
		// In one command: starting one costs the daemon time of its own.
		ticks, err := ask(fmt.Sprintf("t() { awk '{n+=$14+$15} END{print n}' /proc/1/stat /proc/$PPID/stat; }; a=$(t); sleep %d; echo $(($(t)-a))", int(daemonIdle.Seconds())))
		cpu.Add(float64(ticks) / daemonIdle.Seconds()) // a tick is a hundredth of a second
		return err
	})
	held := resident.Figure().Against("15", figure.Target{P50: 10})
	held.Reference = append(held.Reference, file.Figure(), inside.Figure())
	return []figure.Figure{
		size.Figure().Against("15", figure.Target{P50: 12}), held, cpu.Figure().Against("15", figure.Target{P50: 0.1}),
	}, err
}

// daemonUser is nobody: the daemon is anybody's on the host until its Init.
const (
	daemonUser     = "nobody"
	daemonUserID   = 65534
	daemonCommands = 10
	daemonTime     = 30 * time.Second
)

// onLinux runs the guest daemon as a program of this host, lets it do what it does
// in a new sandbox, and returns what is resident of it then. The kernel in a
// gVisor sandbox tells something else: what it has set aside, in pieces of 2 MiB,
// and a mapped file as a whole.
func onLinux(ctx context.Context) (anonymous, file int64, err error) {
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
	ctx, cancel := context.WithTimeoutCause(ctx, daemonTime, hearth.Errorf(hearth.DeadlineExceeded, "the guest daemon did not serve ten commands within %s", daemonTime))
	cmd := exec.CommandContext(ctx, program, "-listen", address, "-machine=false", "-code", filepath.Join(dir, "none"))
	cmd.Dir = "/"
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: daemonUserID, Gid: daemonUserID}}
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
	if err := host.Init(ctx, guest.InitRequest{Now: time.Now(), Seed: seed, Token: token, SandboxID: "bench", User: daemonUser, Workdir: "/"}); err != nil {
		return err
	}
	user := agentclient.NewUser(dial, token)
	for range daemonCommands {
		exit, err := user.Run(ctx, agentclient.RunRequest{Cmd: "true", User: daemonUser}, nil)
		if err != nil || exit != 0 {
			return errors.Join(err, errUnexpected)
		}
	}
	return nil
}
