package daemon

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"hearth/internal/guest/code"
	"hearth/internal/guest/files"
	"hearth/internal/guest/process"
	"hearth/internal/guest/process/account"
	"hearth/internal/guest/process/reap"
)

const (
	interpreterState = "/run/hearth-code"
	interpreterUser  = "user" // whoever the session's default is, as notebooks belong to this one
)

// interpreter runs the code service from the first Init on: before that no
// user code may run, and the kernel is some.
type interpreter struct {
	marker code.Marker
	reaper *reap.Reaper
	log    *slog.Logger

	service atomic.Pointer[code.Service]
	work    sync.WaitGroup
}

// reset gives the service the session of an Init, starting it the first time.
// Inits do not overlap.
func (i *interpreter) reset(ses account.Session) error {
	if s := i.service.Load(); s != nil {
		s.Reset(ses.Env)
		return nil
	}
	who, err := account.Lookup(interpreterUser)
	if err != nil {
		if who, err = account.Lookup(ses.User); err != nil {
			return err
		}
	}
	s, err := code.New(code.Options{
		Marker: i.marker, Launcher: &launcher{reaper: i.reaper, who: who}, StateDir: interpreterState,
		Home: who.Home, UID: int(who.UID), GID: int(who.GID), Log: i.log,
	})
	if err != nil {
		return err
	}
	s.Reset(ses.Env)
	i.service.Store(s)
	i.work.Go(func() {
		if err := s.Run(context.Background()); err != nil { // ends with close
			i.log.Error("the code interpreter stopped", "err", err)
		}
	})
	return nil
}

// rehearse runs a cell that does nothing, if there is a kernel.
func (i *interpreter) rehearse(ctx context.Context) error {
	s := i.service.Load()
	if s == nil {
		return nil
	}
	return s.Rehearse(ctx)
}

func (i *interpreter) close() {
	if s := i.service.Load(); s != nil {
		s.Close()
	}
	i.work.Wait()
}

// serve answers with one of the service's handlers once there is a service.
func (i *interpreter) serve(which func(*code.Service) http.Handler) http.Handler {
	handler := sync.OnceValue(func() http.Handler { return which(i.service.Load()) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if i.service.Load() == nil {
			files.WriteError(w, http.StatusServiceUnavailable, "the code interpreter is not running")
			return
		}
		handler().ServeHTTP(w, r)
	})
}

// cells guards the code interpreter: nothing while the daemon is sealed, and no
// code without the sandbox's token. The other calls of its protocol run nothing,
// and official clients send no token with them.
func (d *Daemon) cells(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := d.state.get()
		switch {
		case now.sealed:
			sealed(w)
		case r.URL.Path == "/execute" && r.Method != http.MethodOptions && !now.user(r.Header.Get(tokenHeader)):
			unauthorized(w, unauthorizedText)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// notebookCookie carries the token of a browser that came with it in the URL.
const notebookCookie = "hearth-token"

// notebook guards the Jupyter Server, which has no token of its own: whoever
// reaches it runs code. The sandbox's token is taken where Jupyter's clients
// put theirs.
func (d *Daemon) notebook(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := d.state.get()
		if now.sealed {
			sealed(w)
			return
		}
		query := r.URL.Query().Get("token")
		if !now.user(r.Header.Get(tokenHeader)) && !now.user(query) && !now.user(presented(r)) {
			unauthorized(w, unauthorizedText)
			return
		}
		if query != "" {
			http.SetCookie(w, &http.Cookie{Name: notebookCookie, Value: query, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
		}
		next.ServeHTTP(w, r)
	})
}

// presented is the token in the Authorization header, "token X" or "Bearer X",
// else in the cookie.
func presented(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "token") || strings.EqualFold(scheme, "bearer") {
		return token
	}
	if c, err := r.Cookie(notebookCookie); err == nil {
		return c.Value
	}
	return ""
}

// launcher starts kernels for the code service.
type launcher struct {
	reaper *reap.Reaper
	who    account.Account
}

// Launch implements code.Launcher.
func (l *launcher) Launch(_ context.Context, cmd code.Command) (code.Process, error) {
	p, err := process.Hidden{Who: l.who, Argv: cmd.Argv, Env: cmd.Env, Dir: cmd.Dir, Output: cmd.Output}.Start(l.reaper)
	if err != nil {
		return nil, err // not a nil *Running in a non-nil interface
	}
	return p, nil
}
