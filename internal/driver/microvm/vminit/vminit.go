// Package vminit is hearth-init, the first program of a virtual machine. It
// loads the kernel's modules, mounts the layers and the disk as one root file
// system, starts the machine's first program in it, and serves the host's end of
// package channel until that program ends; then it reports how, and the machine
// ends with it.
//
// What users of a machine run cannot reach it: the first program and its children live
// in namespaces of their own for processes, mounts and control groups, with a limit of
// memory and of processes that leaves hearth-init enough of both. Inside,
// the first program is process 1, as it is in gVisor.
//
// Files of the initramfs:
//
//	/init         hearth-init
//	/modules/*    kernel modules, loaded in the order of their names
package vminit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/driver/microvm/channel"
)

const (
	enterArgument = "enter" // of the process that becomes the first program
	farewell      = 3 * time.Second
	heapLimit     = 48 << 20
)

// Main runs the program. It does not return in the first process of a machine.
func Main() {
	if len(os.Args) > 1 && os.Args[1] == enterArgument {
		err := enter(os.Args[2:])
		report(err)
		os.Exit(127)
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "hearth-init is the first program of a virtual machine; it does nothing elsewhere")
		os.Exit(2)
	}
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(heapLimit)
	m := &machine{ended: make(chan struct{}), told: make(chan struct{})}
	m.finish(m.run())
	end()
}

// machine is the guest as hearth-init sees it.
type machine struct {
	options options
	net     network
	disk    disk

	end   sync.Once
	ended chan struct{} // closed once exit is set
	exit  channel.Exit
	tell  sync.Once
	told  chan struct{} // closed when the host knows
}

// run is the life of the machine.
func (m *machine) run() (channel.Exit, error) {
	if err := mountOwn(); err != nil {
		return channel.Exit{}, err
	}
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return channel.Exit{}, err
	}
	options, err := parseOptions(string(line))
	if options.channel == "" {
		options.channel = Serial // to tell of a bad command line at least
	}
	m.options = options
	missing := loadModules("/modules")
	go m.listen()
	if err != nil {
		return channel.Exit{}, fmt.Errorf("kernel command line: %w", err)
	}
	if err := m.build(); err != nil {
		return channel.Exit{}, errors.Join(append([]error{err}, missing...)...)
	}
	for _, err := range missing {
		logf("%v", err)
	}
	return m.program()
}

// build makes the root file system and what else is outside of it.
func (m *machine) build() error {
	if err := mountRoot(m.options); err != nil {
		return err
	}
	if err := makeGroups(); err != nil {
		return err
	}
	return m.net.loopback()
}

// finish publishes how the machine ends, and waits a moment for the host to hear it.
func (m *machine) finish(e channel.Exit, err error) {
	if err != nil {
		e = channel.Exit{Code: 1, Reason: err.Error()}
		logf("%v", err)
	}
	m.end.Do(func() {
		m.exit = e
		close(m.ended)
	})
	synced := make(chan struct{})
	go func() {
		unix.Sync()
		close(synced)
	}()
	limit := time.After(farewell)
	for _, c := range []chan struct{}{m.told, synced} {
		select {
		case <-c:
		case <-limit:
			return
		}
	}
}

// end ends the machine. Monitors are started so that a restart ends them.
func end() {
	for {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		time.Sleep(time.Second)
	}
}

// Wait implements channel.Guest.
func (m *machine) Wait(ctx context.Context) (channel.Exit, error) {
	select {
	case <-m.ended:
		return m.exit, nil
	case <-ctx.Done():
		return channel.Exit{}, ctx.Err()
	}
}

// Told implements channel.Guest.
func (m *machine) Told() { m.tell.Do(func() { close(m.told) }) }

// logf writes to the kernel's log, which the console shows.
func logf(format string, a ...any) {
	text := fmt.Sprintf("<3>hearth-init: "+format+"\n", a...)
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		_, _ = f.WriteString(text)
		_ = f.Close()
	}
}
