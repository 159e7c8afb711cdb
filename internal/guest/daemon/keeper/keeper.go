// Package keeper is the first process of a machine. It starts the guest daemon, and
// starts it again when somebody inside has killed it, with what it must not forget; it
// buries the processes that nobody else waits for. All of it is little and sleeps, so
// that there is next to nothing that could end it, and with it the machine.
//
// What the daemon knew of single processes ends with it: those that it had started
// live on, as children of the first process, but no call lists them, and what they
// write is read by nobody any more.
package keeper

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"time"
)

// A daemon that dies at once is started again ever more slowly.
const (
	firstPause = 10 * time.Millisecond
	lastPause  = 2 * time.Second
	longLife   = 10 * time.Second // of a daemon after whose end the pauses begin anew
)

// KeptArgument tells a program that it is the daemon of a keeper.
const KeptArgument = "-kept"

// Run keeps the program argv[0] alive, with KeptArgument before argv[1:], and returns
// only when it could not be kept: it does not start, or it ended by itself, with a
// status, before it was ever started again. That status is the result.
func Run(argv []string, log *slog.Logger) (status int, err error) {
	memory, err := newMemory()
	if err != nil {
		return 0, err
	}
	argv = append([]string{argv[0], KeptArgument}, argv[1:]...)
	pause := firstPause
	for first := true; ; first = false {
		began := time.Now()
		ws, err := life(argv, memory)
		switch {
		case err != nil && first:
			return 0, err
		case err == nil && first && ws.Exited() && ws.ExitStatus() != crashed:
			return ws.ExitStatus(), nil
		}
		if time.Since(began) > longLife {
			pause = firstPause
		}
		log.Error("the guest daemon ended and is started again", "status", ended(ws), "err", err, "pause", pause)
		time.Sleep(pause)
		pause = min(pause*2, lastPause)
	}
}

// crashed is the exit status of a Go program that panics.
const crashed = 2

func ended(ws syscall.WaitStatus) string {
	if ws.Signaled() {
		return "signal: " + ws.Signal().String()
	}
	return fmt.Sprintf("exit status %d", ws.ExitStatus())
}

// life starts the daemon and waits for its end. Whoever else ends is buried.
func life(argv []string, memory *Memory) (syscall.WaitStatus, error) {
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2, memory.file.Fd()},
	})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", argv[0], err)
	}
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case got == pid:
			return ws, nil
		}
	}
}
