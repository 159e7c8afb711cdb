// Command hearth-guest is the daemon inside every sandbox. As PID 1 it prepares the
// machine, and keeps a second process of its own alive, which is the daemon; elsewhere
// (tests) it leaves the machine alone.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"hearth/internal/guest"
	"hearth/internal/guest/code"
	"hearth/internal/guest/daemon"
	"hearth/internal/guest/daemon/keeper"
	"hearth/internal/guest/process/reap"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "hearth-guest:", err)
		os.Exit(1)
	}
}

// life ends when the daemon is told to stop. In a machine it never is, and its keeper
// neither: whoever ends machines does that from outside. The signals of
// programs inside, and of a log that nobody reads any more, must not end them. They are
// caught, not ignored, because children inherit what is ignored.
func life(machine bool) (context.Context, context.CancelFunc) {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, unix.SIGPIPE, unix.SIGHUP)
	if !machine {
		return signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	}
	signal.Notify(caught, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGALRM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGTRAP, unix.SIGSYS, unix.SIGSTKFLT, unix.SIGIO, unix.SIGXCPU, unix.SIGXFSZ, unix.SIGVTALRM, unix.SIGPWR, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGSEGV)
	return context.WithCancel(context.Background())
}

func run() error {
	listen := flag.String("listen", fmt.Sprintf(":%d", guest.Port), "address to serve on")
	machine := flag.Bool("machine", os.Getpid() == 1, "set up the machine: mounts, host name, clock, /etc")
	kept := flag.Bool(keeper.KeptArgument[1:], false, "be the daemon of a keeper, which is the first process")
	procs := flag.Uint64("max-processes", 2048, "most processes of a user other than root; 0: no limit")
	marker := flag.String("code", code.MarkerPath, "file that describes the image's code interpreter; missing: there is none")
	flag.Parse()

	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := life(*machine || *kept)
	defer stop()
	var system *daemon.System
	if *machine || *kept {
		system = daemon.NewSystem(*procs)
	}
	if *machine && !*kept {
		for _, err := range system.Prepare() {
			log.Warn("the machine could not be fully prepared", "err", err)
		}
	}
	if os.Getpid() == 1 {
		return keep(log)
	}

	// A sandbox is small: few threads, and a heap that is collected early.
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), 4))
	debug.SetGCPercent(daemon.HeapGrowth)

	o := daemon.Options{Log: log, System: system, Reaper: reap.New(reap.ScopeOfSelf())}
	defer o.Reaper.Close()
	if *kept {
		o.Memory = keeper.Inherited()
	}
	switch m, err := code.Load(*marker); {
	case err == nil:
		o.Interpreter = &m
	case !errors.Is(err, fs.ErrNotExist):
		log.Error("the code interpreter stays off", "err", err)
	}
	l, err := daemon.Listen(*listen)
	if err != nil {
		return err
	}
	return daemon.New(o).Serve(ctx, l)
}

// keeperBytes is the memory at which the first process collects garbage. It makes hardly any, and
// need not look for it every two minutes, as Go would.
const keeperBytes = 16 << 20

// keep is what the first process does. It needs no more than one thread at a time.
func keep(log *slog.Logger) error {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(keeperBytes)
	status, err := keeper.Run(os.Args, log)
	if err == nil {
		os.Exit(status)
	}
	return err
}
