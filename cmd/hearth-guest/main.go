// Command hearth-guest is the daemon inside every sandbox. As PID 1 it also
// prepares the machine and buries orphans; elsewhere (tests) it leaves the machine alone.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"hearth/internal/guest"
	"hearth/internal/guest/code"
	"hearth/internal/guest/daemon"
	"hearth/internal/guest/process/reap"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "hearth-guest:", err)
		os.Exit(1)
	}
}

// life ends when the daemon is told to stop. As PID 1 it never is: the machine
// ends with it, and whoever ends machines does that from outside. The signals of
// programs inside, and of a log that nobody reads any more, must not end it. They are
// caught, not ignored, because children inherit what is ignored.
func life() (context.Context, context.CancelFunc) {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, unix.SIGPIPE, unix.SIGHUP)
	if os.Getpid() != 1 {
		return signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	}
	signal.Notify(caught, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGALRM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGTRAP, unix.SIGSYS, unix.SIGSTKFLT, unix.SIGIO, unix.SIGXCPU, unix.SIGXFSZ, unix.SIGVTALRM, unix.SIGPWR, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGSEGV)
	return context.WithCancel(context.Background())
}

func run() error {
	listen := flag.String("listen", fmt.Sprintf(":%d", guest.Port), "address to serve on")
	machine := flag.Bool("machine", os.Getpid() == 1, "set up the machine: mounts, host name, clock, /etc")
	procs := flag.Uint64("max-processes", 2048, "most processes of a user other than root; 0: no limit")
	marker := flag.String("code", code.MarkerPath, "file that describes the image's code interpreter; missing: there is none")
	flag.Parse()

	// A sandbox is small: few threads, and a heap that is collected early.
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), 4))
	debug.SetGCPercent(50)

	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := life()
	defer stop()
	o := daemon.Options{Log: log, Reaper: reap.New(reap.ScopeOfSelf())}
	defer o.Reaper.Close()
	if *machine {
		o.System = daemon.NewSystem(*procs)
		for _, err := range o.System.Prepare() {
			log.Warn("the machine could not be fully prepared", "err", err)
		}
	}
	switch m, err := code.Load(*marker); {
	case err == nil:
		o.Interpreter = &m
	case !errors.Is(err, fs.ErrNotExist):
		log.Error("the code interpreter stays off", "err", err)
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	return daemon.New(o).Serve(ctx, l)
}
