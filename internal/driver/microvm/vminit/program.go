package vminit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"hearth/internal/driver/microvm/channel"
)

const (
	groups     = "/sys/fs/cgroup"
	outerGroup = groups + "/hearth" // has the limits; not to be seen from inside
	innerGroup = outerGroup + "/machine"
	maxReport  = 4 << 10
)

// makeGroups makes the control groups of the first program: an outer one with
// limits that root inside cannot reach, because its namespace begins at the inner.
func makeGroups() error {
	memory, processes, err := limits()
	if err != nil {
		return err
	}
	const control = "+cpu +io +memory +pids"
	err = errors.Join(
		os.WriteFile(groups+"/cgroup.subtree_control", []byte(control), 0),
		os.MkdirAll(innerGroup, 0o755),
		os.WriteFile(outerGroup+"/cgroup.subtree_control", []byte(control), 0),
		os.WriteFile(outerGroup+"/memory.max", []byte(strconv.FormatInt(memory, 10)), 0),
		os.WriteFile(outerGroup+"/pids.max", []byte(strconv.FormatInt(processes, 10)), 0),
	)
	if err != nil {
		return fmt.Errorf("control groups: %w", err)
	}
	return nil
}

// limits are the bytes and processes that the first program and its children may have.
// A sixteenth of the memory, 12 to 64 MiB, is left to the kernel and hearth-init.
// Threads count as processes: one for each MiB, at least 256.
func limits() (memory, processes int64, err error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, 0, err
	}
	total := int64(info.Totalram) * int64(info.Unit)
	const mib = 1 << 20
	reserve := min(max(total/16, 12*mib), 64*mib)
	return max(total-reserve, total/2), min(max(total/mib, 256), 32768), nil
}

// program starts the first program and waits for its end.
func (m *machine) program() (channel.Exit, error) {
	pid, err := m.start()
	if err != nil {
		return channel.Exit{}, err
	}
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return channel.Exit{}, fmt.Errorf("wait: %w", err)
		}
		if got == pid {
			return exitOf(ws), nil
		}
	}
}

// start starts the first program in namespaces of its own, by way of enter.
func (m *machine) start() (pid int, err error) {
	group, err := os.Open(innerGroup)
	if err != nil {
		return 0, err
	}
	defer group.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	out, outEnd, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer outEnd.Close()
	why, whyEnd, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer why.Close()
	go forward(out, openConsole())
	_, processes, err := limits()
	if err != nil {
		return 0, err
	}
	argv := append([]string{"hearth-init", enterArgument, strconv.FormatInt(processes*7/8, 10)}, m.options.program...)
	pid, err = syscall.ForkExec("/proc/self/exe", argv, &syscall.ProcAttr{
		Dir: "/", Env: environment(m.options.env),
		Files: []uintptr{null.Fd(), outEnd.Fd(), outEnd.Fd(), whyEnd.Fd()},
		Sys: &syscall.SysProcAttr{
			Setsid: true, Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
			UseCgroupFD: true, CgroupFD: int(group.Fd()),
		},
	})
	_ = whyEnd.Close()
	if err != nil {
		return 0, fmt.Errorf("start the first program: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(why, maxReport))
	if err == nil && len(text) > 0 {
		err = errors.New(string(text))
	}
	return pid, err
}

// environment is what the first program gets beside what the host asked for.
func environment(asked []string) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	for _, e := range asked {
		name, _, _ := strings.Cut(e, "=")
		for i, have := range env {
			if strings.HasPrefix(have, name+"=") {
				env = append(env[:i], env[i+1:]...)
				break
			}
		}
		env = append(env, e)
	}
	return env
}

// exitOf says how the first program ended.
func exitOf(ws syscall.WaitStatus) channel.Exit {
	if !ws.Signaled() {
		return channel.Exit{Code: ws.ExitStatus()}
	}
	// Nobody inside can send this process SIGKILL.
	return channel.Exit{
		Code: 128 + int(ws.Signal()), Signal: int(ws.Signal()),
		OOM: ws.Signal() == syscall.SIGKILL && killedForMemory(),
	}
}

// killedForMemory reports whether the kernel has killed any process for memory.
func killedForMemory() bool {
	for file, field := range map[string]string{filepath.Join(outerGroup, "memory.events"): "oom_kill", "/proc/vmstat": "oom_kill"} {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(raw)) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == field && f[1] != "0" {
				return true
			}
		}
	}
	return false
}
