package app

import (
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hearth/internal/api"
	"hearth/internal/auth"
	"hearth/internal/builder"
	"hearth/internal/control"
	"hearth/internal/dash"
	"hearth/internal/edge"
	"hearth/internal/guest"
	"hearth/internal/hearth"
)

// gateway answers the edge's questions from the control plane's memory.
type gateway struct{ *App }

// Resolve implements edge.Resolver.
func (g gateway) Resolve(_ context.Context, id hearth.SandboxID) (edge.Route, error) {
	r, ok := g.control.Route(id)
	if !ok {
		return edge.Route{}, hearth.Errorf(hearth.NotFound, "The sandbox was not found")
	}
	return edge.Route{
		Sandbox: r.Sandbox, State: r.State, Life: r.Launch, PrivateIngress: r.Network.PrivateIngress,
		TrafficToken: r.Traffic, MaskRequestHost: r.Network.MaskRequestHost, History: r.History,
	}, nil
}

// DialSandbox implements edge.Dialer.
func (g gateway) DialSandbox(ctx context.Context, id hearth.SandboxID, port uint16) (net.Conn, error) {
	return g.agent.Dial(ctx, id, port)
}

// FindSigned implements edge.Signed: one hash per sandbox that traffic may get to.
func (g gateway) FindSigned(_ context.Context, u edge.SignedURL) (hearth.SandboxID, error) {
	file, err := signedFile(u)
	if err != nil {
		return "", err
	}
	for _, id := range g.control.Reachable() {
		token := g.tokens.Access(id)
		if !file.SignedWith(token) {
			continue
		}
		if r, _ := g.control.Route(id); r.State == hearth.Running {
			return id, nil // its guest says whether the time is over
		}
		return id, file.Verify(token, time.Now())
	}
	return "", hearth.Errorf(hearth.NotFound, "no sandbox that traffic may get to has signed this URL")
}

func signedFile(u edge.SignedURL) (auth.FileURL, error) {
	query := url.Values{"path": {u.Path}, "username": {u.User}, "signature": {u.Signature}}
	if u.Expiration != "" {
		query.Set("signature_expiration", u.Expiration)
	}
	return auth.ParseFileURL(u.Operation, query)
}

// Wake implements edge.Waker: traffic resumes a sandbox whose owner asked for that,
// when it may pass the port. A pause under way is waited for.
func (g gateway) Wake(ctx context.Context, id hearth.SandboxID, knock edge.Knock) (edge.Route, error) {
	r, ok := g.control.Route(id)
	if ok && !r.AutoResume && r.State == hearth.Pausing {
		return edge.Route{}, hearth.Errorf(hearth.Aborted, "sandbox %s is %s", id, r.State)
	}
	if !ok || !r.AutoResume {
		return edge.Route{}, hearth.Errorf(hearth.NotFound, "The sandbox was not found")
	}
	if !opens(r, knock) {
		return edge.Route{}, hearth.Errorf(hearth.PermissionDenied, "the token or signature is wrong")
	}
	if _, err := g.control.Wake(ctx, id); err != nil {
		return edge.Route{}, err
	}
	return g.Resolve(ctx, id)
}

// opens reports whether a knock may pass the port: it has the token that the port
// wants or, of the guest's own, a signature that was made with it.
func opens(r control.Route, knock edge.Knock) bool {
	if knock.Port != guest.Port {
		return r.Traffic == "" || auth.Equal(knock.Token, r.Traffic)
	}
	if r.Access == "" || auth.Equal(knock.Token, r.Access) {
		return true
	}
	file, err := signedFile(knock.File)
	return err == nil && file.Verify(r.Access, time.Now()) == nil
}

// handler puts edge, dashboard and API behind one port.
func (a *App) handler(ctx context.Context) (http.Handler, error) {
	g := gateway{a}
	traffic := edge.New(edge.Config{Domain: a.cfg.Domain, Total: descriptors() / share}, edge.Deps{Resolver: g, Dialer: g, Signed: g, Waker: g, Stepper: a.control, Log: a.opts.Log})
	a.traffic.Store(traffic)
	forget := a.control.Subscribe(func(r control.Route) {
		if r.State != hearth.Running {
			traffic.Drop(r.Sandbox)
		}
	})
	context.AfterFunc(ctx, func() {
		forget()
		traffic.Close()
	})
	public, err := api.New(api.Deps{
		Sandboxes: a.control, Templates: a.db, Parcels: a.travel, Differences: a.compare, Builds: buildLogs{a.builder}, Tokens: a.tokens,
		Keys: a.keys, Throttle: a.keys, Ready: a.db.Ping, Domain: a.cfg.Domain, Log: a.opts.Log,
	})
	if err != nil {
		return nil, err
	}
	pages, err := a.dashboard()
	if err != nil {
		return nil, err
	}
	return impatient(split(traffic, pages, public), lingerTime), nil
}

// dashboard returns the handler of the pages for people, nil if there are to be none.
func (a *App) dashboard() (http.Handler, error) {
	if !a.cfg.Dashboard {
		return nil, nil
	}
	return dash.New(dash.Deps{Sandboxes: a.control, Keys: a.keys, Hash: auth.HashKey, Throttle: a.keys, Log: a.opts.Log})
}

// split sends what is for a sandbox to the edge, whatever its path; of the rest
// what is for people to their pages, if there are any, and everything else to the API.
func split(traffic *edge.Edge, pages, public http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case traffic.Matches(r):
			traffic.ServeHTTP(w, r)
		case pages != nil && dash.Matches(r):
			pages.ServeHTTP(w, r)
		default:
			public.ServeHTTP(w, r)
		}
	})
}

// lingerTime is how long a client may go on sending a request that was answered.
const lingerTime = 5 * time.Second

// impatient bounds how long the server reads the rest of a body that next did
// not want. net/http reads it before it sends the answer, and would wait for a
// stranger without a key for as long as he likes to send nothing.
func impatient(next http.Handler, linger time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(linger)) // a connection may be taken over, or gone
		}()
		next.ServeHTTP(w, r)
	})
}

// buildLogs gives the API the builder's logs in its own words.
type buildLogs struct{ builder *builder.Builder }

// Logs implements api's view of the builder.
func (b buildLogs) Logs(id hearth.BuildID, offset, limit int) []api.LogEntry {
	var list []api.LogEntry
	for _, e := range b.builder.Logs(id, offset, limit) {
		list = append(list, api.LogEntry(e))
	}
	return list
}

// httpLog sends what net/http complains about to the debug level: strangers
// cause most of it.
func httpLog(l *slog.Logger) *log.Logger {
	return slog.NewLogLogger(l.Handler(), slog.LevelDebug)
}

func trimSpace(raw []byte) string { return strings.TrimSpace(string(raw)) }

// writeFile replaces a small file, readable by its owner alone, whole or not at all.
func writeFile(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return hearth.Wrap(hearth.PermissionDenied, err, "%s cannot be written", path)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := io.WriteString(f, text); err != nil {
		return hearth.Wrap(hearth.ResourceExhausted, err, "%s cannot be written", path)
	}
	if err := f.Sync(); err != nil {
		return hearth.Wrap(hearth.ResourceExhausted, err, "%s cannot be written", path)
	}
	return os.Rename(f.Name(), path)
}

// overwrite replaces the text of a file that is there, without asking for space
// that it does not have already.
func overwrite(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return hearth.Wrap(hearth.ResourceExhausted, err, "%s cannot be written", path)
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Truncate(int64(len(text))), f.Close()); err != nil {
		return hearth.Wrap(hearth.ResourceExhausted, err, "%s cannot be written", path)
	}
	return nil
}
