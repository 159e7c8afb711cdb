// Package daemon is the program inside every sandbox: it puts the process and
// file services behind one listener, and does what the first process of a
// machine must do.
//
// It starts sealed: it answers its health check and Init, everything else is
// 503. Init gives it a clock, entropy, an identity and tokens; Quiesce
// seals it again before a checkpoint, so that no clone serves anybody as somebody else.
package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"hearth/internal/gen/guestv1/guestv1connect"
	"hearth/internal/guest"
	"hearth/internal/guest/code"
	"hearth/internal/guest/daemon/httpserve"
	"hearth/internal/guest/files"
	"hearth/internal/guest/process"
	"hearth/internal/guest/process/account"
	"hearth/internal/guest/process/reap"
)

const (
	idleTimeout   = 640 * time.Second // longer than any proxy in front keeps a connection
	headerTimeout = 20 * time.Second
	maxHeader     = 64 << 10
	maxMessage    = 32 << 20 // bytes of one RPC message
	maxInit       = 4 << 20  // bytes of the JSON of Init
	neverCompress = 1 << 30  // answers go to a neighbour on the same host
)

// Options are what a Daemon depends on.
type Options struct {
	// System is what the daemon may change around it; nil: nothing (tests).
	System *System
	// Reaper starts and waits for every process.
	Reaper *reap.Reaper
	// Interpreter is what the image says of its code interpreter; nil: it has none.
	Interpreter *code.Marker
	// Memory outlives this process; nil: nothing does.
	Memory Memory
	// Log takes what nobody else is told.
	Log *slog.Logger
}

// Daemon is the guest daemon. Use New.
type Daemon struct {
	log     *slog.Logger
	system  *System
	state   *state
	process *process.Service
	files   *files.Service
	meter   *meter
	code    *interpreter // nil: the image has none
	conns   *connections
	handler http.Handler
	root    string // whose files an inventory lists
	garbage garbage

	services http.Handler // behind the guards
}

// New returns a daemon that listens nowhere yet: sealed, or as the one before it
// was, if that one had an identity and was killed.
func New(o Options) *Daemon {
	d := &Daemon{log: o.Log, system: o.System, state: newState(o.Memory), meter: newMeter(), conns: newConnections(), root: "/"}
	d.process = process.New(process.Options{Reaper: o.Reaper, Session: d.state.session})
	d.files = files.New(files.Options{Session: d.state.session, Guard: d.guardFile})
	d.handler = d.routes()
	if o.Interpreter != nil {
		d.code = &interpreter{marker: *o.Interpreter, reaper: o.Reaper, log: o.Log}
	}
	d.recall()
	d.collect(d.state.get().sealed)
	return d
}

// Session is what Init set, for services that run beside the daemon's own.
func (d *Daemon) Session() account.Session { return d.state.session() }

// Handler serves everything of guest.Port.
func (d *Daemon) Handler() http.Handler { return d.handler }

func (d *Daemon) routes() http.Handler {
	options := []connect.HandlerOption{
		connect.WithReadMaxBytes(maxMessage),
		connect.WithCompressMinBytes(neverCompress),
	}
	mux := http.NewServeMux()
	path, handler := guestv1connect.NewProcessHandler(d.process, options...)
	mux.Handle(path, process.JoinEnds(handler))
	mux.Handle(guestv1connect.NewFilesystemHandler(d.files, options...))
	mux.HandleFunc("GET /files", d.files.Download)
	mux.HandleFunc("POST /files", d.files.Upload)
	mux.HandleFunc("POST /files/compose", d.files.Compose)
	mux.HandleFunc("GET /health", d.health)
	mux.HandleFunc("GET /metrics", d.metrics)
	mux.HandleFunc("GET /envs", d.envs)
	mux.HandleFunc("POST /init", d.init)
	mux.HandleFunc("POST /quiesce", d.quiesce)
	mux.HandleFunc("POST "+guest.InventoryPath, d.inventory)
	mux.HandleFunc("GET /forward", d.forward)
	mux.HandleFunc("POST "+guest.RehearsePath, d.rehearse)
	d.services = mux
	return cors(d.admit(timeoutZero(known(mux))))
}

// Listen listens for what a Daemon serves. Connections come from processes of the machine's
// own host, whose kernel ends them: no keepalive, which takes four system calls for each of
// them and wakes the network stack of a frozen machine.
func Listen(address string) (net.Listener, error) {
	l := net.ListenConfig{KeepAlive: -1}
	return l.Listen(context.Background(), "tcp", address)
}

// Serve answers on l until ctx ends, then ends every process and connection. It
// returns nil after ctx has ended, else why it could not go on. The code
// interpreter, where there is one, gets its own two ports.
func (d *Daemon) Serve(ctx context.Context, l net.Listener) error {
	servers := map[*httpserve.Server]net.Listener{d.server(d.handler): l}
	if d.code != nil {
		for port, h := range map[int]http.Handler{
			guest.CodePort:    d.cells(d.code.serve((*code.Service).Handler)),
			guest.JupyterPort: d.notebook(d.code.serve((*code.Service).JupyterHandler)),
		} {
			also, err := Listen(":" + strconv.Itoa(port))
			if err != nil {
				return err
			}
			servers[d.server(h)] = also
		}
	}
	failed := make(chan error, len(servers))
	for srv, l := range servers {
		go func() { failed <- srv.Serve(l) }()
	}
	var err error
	left := len(servers)
	select {
	case err = <-failed:
		left--
	case <-ctx.Done():
	}
	for srv := range servers {
		_ = srv.Close()
	}
	for range left {
		<-failed
	}
	d.conns.closeForwards()
	if d.code != nil {
		d.code.close()
	}
	d.process.Close()
	d.files.Close()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// server makes a server that waits for slow users but not for slow headers. It speaks HTTP/1 alone, as
// the edge and the host do with it, whatever their own clients speak.
func (d *Daemon) server(h http.Handler) *httpserve.Server {
	return &httpserve.Server{
		Handler: h, HeadTimeout: headerTimeout, IdleTimeout: idleTimeout,
		MaxHead: maxHeader, ConnState: d.conns.track, Log: d.log,
	}
}
