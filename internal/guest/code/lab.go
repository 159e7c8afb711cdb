package code

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"hearth/internal/guest/code/pass"
	"hearth/internal/hearth"
)

const (
	labTime  = 60 * time.Second      // for the Jupyter Server to accept connections
	labPause = 50 * time.Millisecond // between looks for its socket
)

// lab is the Jupyter Server behind port 8888: started by the first request, then
// left running. It listens on a unix socket, so nothing reaches it but through us.
type lab struct {
	mu     sync.Mutex
	proc   Process
	exited chan struct{}
	log    *tail
	closed bool
}

// JupyterHandler serves port 8888. The first request starts the Jupyter Server of the
// image, which shows the kernels of all Python contexts beside its own; requests
// and WebSockets are then passed to it. Without one in the image the answer is 503.
func (s *Service) JupyterHandler() http.Handler {
	proxy := &pass.Handler{
		Dial: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", s.labSocket())
		},
		Fail: func(w http.ResponseWriter, err error) {
			refuse(w, http.StatusBadGateway, hearth.Wrap(hearth.Unavailable, err, "the Jupyter Server did not answer"))
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.opts.Marker.JupyterServer {
			refuse(w, http.StatusServiceUnavailable, hearth.Errorf(hearth.Unimplemented,
				"no Jupyter Server: the image of this sandbox does not have jupyter_server"))
			return
		}
		if err := s.openLab(r.Context()); err != nil {
			refuse(w, http.StatusServiceUnavailable, err)
			return
		}
		proxy.ServeHTTP(w, r)
	})
}

func (s *Service) labSocket() string { return filepath.Join(s.opts.StateDir, "lab", "s") }

// openLab makes sure that the server runs and that no kernel it can see is stale.
func (s *Service) openLab(ctx context.Context) error {
	s.refresh(ctx)
	l := &s.lab
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errClosed
	}
	if l.running() {
		return nil
	}
	if err := s.launchLab(ctx); err != nil {
		return hearth.Wrap(hearth.Unavailable, err, "the Jupyter Server could not be started: %s", message0(err))
	}
	return nil
}

// running needs l.mu.
func (l *lab) running() bool {
	if l.proc == nil {
		return false
	}
	select {
	case <-l.exited:
		return false
	default:
		return true
	}
}

// launchLab needs lab.mu.
func (s *Service) launchLab(ctx context.Context) error {
	l, socket := &s.lab, s.labSocket()
	if err := s.ownDir(filepath.Dir(socket)); err != nil {
		return err
	}
	_ = os.Remove(socket)
	log := &tail{}
	proc, err := s.opts.Launcher.Launch(ctx, Command{
		Argv: s.labArgv(socket), Dir: s.opts.Home, Env: s.environment().values, Output: log,
	})
	if err != nil {
		return err
	}
	l.proc, l.log, l.exited = proc, log, make(chan struct{})
	go func(exited chan struct{}) {
		_ = proc.Wait()
		close(exited)
	}(l.exited)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), labTime)
	defer cancel()
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			return conn.Close()
		}
		select {
		case <-l.exited:
			return hearth.Errorf(hearth.Unavailable, "it ended: %s", log.last())
		case <-s.life.Done():
			return errClosed
		case <-ctx.Done():
			_ = proc.Signal(syscall.SIGKILL)
			return hearth.Errorf(hearth.DeadlineExceeded, "not ready within %v", labTime)
		case <-time.After(labPause):
		}
	}
}

func (s *Service) labArgv(socket string) []string {
	return []string{
		s.opts.Marker.Python, "-m", "jupyter_server",
		"--ServerApp.sock=" + socket, "--ServerApp.sock_mode=0600",
		"--IdentityProvider.token=", "--ServerApp.password=", "--ServerApp.allow_root=True",
		"--ServerApp.root_dir=" + s.opts.Home, "--ServerApp.open_browser=False",
		"--ServerApp.allow_remote_access=True", "--ServerApp.allow_origin=*",
		"--ServerApp.disable_check_xsrf=True",
		"--ServerApp.allow_external_kernels=True",
		"--ServerApp.external_connection_dir=" + filepath.Join(s.opts.StateDir, connectionsDir),
		"--ZMQChannelsWebsocketConnection.iopub_data_rate_limit=1e9",
	}
}

// refresh brings idle Python kernels to the current epoch: the Jupyter Server's
// clients reach them without our metadata.
func (s *Service) refresh(ctx context.Context) {
	epoch := s.environment().epoch
	s.mu.Lock()
	var all []*executor
	for _, e := range s.contexts {
		if e.spec.prepared {
			all = append(all, e)
		}
	}
	s.mu.Unlock()
	for _, e := range all {
		k, err := e.ensure(ctx)
		if err != nil {
			continue
		}
		select {
		case k.busy <- struct{}{}:
			stale := k.epoch != epoch
			<-k.busy
			if stale {
				_ = s.quietly(ctx, k, cell{})
			}
		default: // it runs a cell, which has brought it up to date
		}
	}
}

// close ends the server. No other start follows.
func (l *lab) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.running() {
		_ = l.proc.Signal(syscall.SIGKILL)
		<-l.exited
	}
}
