package app

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"hearth/internal/config"
	"hearth/internal/doctor"
	"hearth/internal/driver/hostproc"
	"hearth/internal/driver/microvm/kvmprobe"
	"hearth/internal/edge"
	"hearth/internal/guest/embedded"
	"hearth/internal/hearth"
	"hearth/internal/netns"
)

// Time that a stopping server gives requests in flight. Streams into sandboxes
// do not end by themselves, so it is short; their processes live on.
const drainTime = 2 * time.Second

// Limits of one HTTP request's head.
const (
	headerTime  = 10 * time.Second
	idleTime    = 11 * time.Minute // longer than the 640 s for which clients keep connections
	headerBytes = 64 << 10
)

// DoctorHost is what the doctor examines for this configuration.
func DoctorHost(cfg *config.Config) doctor.Host {
	h := doctor.Host{Config: cfg, Network: tryNetwork, KVM: tryKVM, Guest: func() error {
		info, _ := debug.ReadBuildInfo()
		if err := built(info); err != nil {
			return err
		}
		_, err := embedded.Binary()
		return err
	}}
	if all, err := allDrivers(parts{cfg: cfg, log: slog.New(slog.DiscardHandler)}); err == nil {
		h.Drivers = all
	}
	for _, w := range wishes(cfg) {
		h.Wanted = append(h.Wanted, w.driver)
	}
	if _, err := os.Stat(filepath.Join(cfg.Data, databaseFile)); err == nil {
		h.Settled = true
	}
	return h
}

// built refuses a binary that a plain `go build` has made on a host with a C
// compiler: it needs libraries, which there are none of where a sandbox starts.
func built(info *debug.BuildInfo) error {
	if info == nil {
		return nil
	}
	for _, s := range info.Settings {
		if s.Key == "CGO_ENABLED" && s.Value == "1" {
			return hearth.Errorf(hearth.FailedPrecondition, "this binary was built with cgo and cannot start sandboxes")
		}
	}
	return nil
}

// tryNetwork makes one slot, with a filter of its own, and removes it again.
func tryNetwork(ctx context.Context) (err error) {
	m, err := netns.New(netns.Config{Name: "d" + strconv.Itoa(os.Getpid()%10000), ReadyMax: -1}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if err := m.Open(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Remove(context.WithoutCancel(ctx))) }()
	_, err = m.Acquire(ctx)
	return err
}

func tryKVM(ctx context.Context) error { return kvmprobe.Check(ctx, kvmprobe.Device) }

// Serve runs a server until ctx ends. Sandboxes outlive it.
func Serve(ctx context.Context, cfg *config.Config, opts Options) error {
	host := DoctorHost(cfg)
	host.Network, host.Drivers, host.KVM = nil, nil, nil // opening the node tries them in earnest
	if err := doctor.Failed(doctor.Examine(ctx, host)); err != nil {
		return err
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if errors.Is(err, unix.EADDRINUSE) {
		return inUse(cfg)
	}
	if err != nil {
		return hearth.Wrap(hearth.InvalidArgument, err, "listen: %s cannot be listened on; choose another address with --listen", cfg.Listen)
	}
	defer l.Close()
	if err := hostproc.SetTimers(os.Getpid(), hostproc.CoarseTimers); err != nil {
		opts.Log.Debug("timers stay exact, and the processors are woken more often", "err", err)
	}
	a := &App{cfg: cfg, opts: opts}
	if err := a.open(ctx); err != nil {
		return err
	}
	defer a.close()
	if err := a.announce(l.Addr().String()); err != nil {
		return err
	}
	defer os.Remove(a.path(PidFile))
	return a.run(ctx, l.(*net.TCPListener)) // what "tcp" stands for
}

// inUse says whose port it is when it is our own.
func inUse(cfg *config.Config) error {
	if Pid(cfg.Data) != 0 {
		return hearth.Errorf(hearth.AlreadyExists, "a server already runs on %s%s; stop it with `hearth down --data %s`", cfg.Data, pidNote(cfg.Data), cfg.Data)
	}
	return hearth.Errorf(hearth.Unavailable, "%s is in use by another program; choose another address with --listen", cfg.Listen)
}

// announce leaves pid and address for people and for `hearth env`. A full disk
// keeps neither from a server that has sandboxes to look after: files that are
// there already are written over in place.
func (a *App) announce(addr string) error {
	for _, f := range []struct{ name, text string }{
		{AddressFile, addr + "\n"},
		{PidFile, strconv.Itoa(os.Getpid()) + "\n"},
	} {
		err := writeFile(a.path(f.name), f.text)
		if hearth.KindOf(err) == hearth.ResourceExhausted {
			err = overwrite(a.path(f.name), f.text)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// run serves, makes what templates are missing, and says when that is done.
func (a *App) run(ctx context.Context, l *net.TCPListener) error {
	handler, err := a.handler(ctx)
	if err != nil {
		return err
	}
	list, err := recipes(a.cfg, a.cache)
	if err != nil {
		return err
	}
	lane := a.traffic.Load().NewLane(newCrowd(l, descriptors()/share), edge.LaneTimes{Head: headerTime, Idle: idleTime})
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: headerBytes, Protocols: protocols,
		ErrorLog: httpLog(a.opts.Log),
	}
	lane.Attach(srv)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := srv.Serve(lane); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		err := srv.Shutdown(drain)
		if err != nil {
			err = srv.Close()
		}
		lane.Drain(drain)
		return err
	})
	for _, service := range []func(context.Context) error{a.agent.Run, a.control.Run, a.builder.Run, a.shelf.Run} {
		g.Go(func() error { return unlessDone(ctx, service(ctx)) })
	}
	g.Go(func() error { return a.metrics(ctx) })
	g.Go(func() error {
		a.keepPools(ctx)
		if err := makeTemplates(ctx, a.builder, a.team.ID, list, a.opts.Progress); err != nil {
			return unlessDone(ctx, err)
		}
		if a.opts.Ready != nil {
			a.opts.Ready()
		}
		return nil
	})
	return g.Wait()
}

// unlessDone drops the error of a service that ended because it was told to.
func unlessDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// StopAll stops every sandbox of a data directory that no server uses, removes
// what they held on the host, and returns how many there were.
func StopAll(ctx context.Context, cfg *config.Config, opts Options) (int, error) {
	if _, err := os.Stat(cfg.Data); err != nil {
		return 0, hearth.Errorf(hearth.NotFound, "no server has run on %s; name its directory with --data", cfg.Data)
	}
	a := &App{cfg: cfg, opts: opts, leaving: true}
	if err := a.open(ctx); err != nil {
		return 0, err
	}
	defer a.lock.release()
	defer a.db.Close()
	n, err := a.killAll(ctx)
	if hearth.KindOf(err) == hearth.ResourceExhausted {
		err = nil // a full disk keeps rows, not machines: the next start settles them
	}
	if err != nil {
		return n, err
	}
	if err := a.agent.Shutdown(ctx); err != nil {
		return n, err
	}
	if err := a.network.Remove(ctx); err != nil {
		return n, err
	}
	return n, errors.Join(Purge(a.drivers), a.removePlain())
}

// killAll ends every running sandbox, a few at once.
func (a *App) killAll(ctx context.Context) (int, error) {
	ids := a.control.Live()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, id := range ids {
		g.Go(func() error {
			r, ok := a.control.Route(id)
			if !ok {
				return nil
			}
			err := a.control.Kill(ctx, r.Team, id)
			if hearth.KindOf(err) == hearth.NotFound {
				return nil // it ended by itself
			}
			return err
		})
	}
	return len(ids), g.Wait()
}
