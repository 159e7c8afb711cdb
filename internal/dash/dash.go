// Package dash is the dashboard: a few pages, made on the server, that show a
// team its sandboxes. It changes nothing. Pages have no script and load nothing
// but one stylesheet, so there is nothing to build and little to attack.
//
// Who knows one of the team's API keys signs in with it and gets a session: a
// random token in a cookie, whose hash the server holds in memory. A session ends
// by its age, by signing out, with its key and with the server.
//
// What pages show comes from users and sandboxes and is hostile: html/template
// escapes it, and headers forbid scripts, frames and other origins. A page that
// a sandbox serves is on another host name or has no origin (package edge); all
// the same nothing but a browser's window is given a page, no fetch and no frame.
package dash

import (
	"bytes"
	"context"
	"crypto/rand"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/store"
)

// Root is the path below which all pages are.
const Root = "/dash/"

// Bounds of one request.
const (
	requestTime = 10 * time.Second
	formBytes   = 4 << 10
)

//go:embed pages
var files embed.FS

// Deps is what the dashboard is made of. Fields are required unless they say otherwise.
type Deps struct {
	Sandboxes sandboxes
	Keys      keys
	Hash      func(key string) string // the form in which Keys knows a key that was checked before
	Throttle  throttle                // optional: without it wrong keys may be tried without end
	Log       *slog.Logger
}

// sandboxes is the part of control.Controller that pages show. List, Count and
// Snapshots take the team in their filter; the others fail with NotFound when
// the sandbox is not the team's.
type sandboxes interface {
	List(ctx context.Context, f store.SandboxFilter, p store.Page) (list []*hearth.Sandbox, next string, err error)
	Count(ctx context.Context, f store.SandboxFilter) (int, error)
	Sandbox(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) (*hearth.Sandbox, error)
	Metrics(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, start, end time.Time) ([]node.Usage, error)
	Snapshots(ctx context.Context, f store.SnapshotFilter, p store.Page) (list []*hearth.Snapshot, next string, err error)
}

// keys finds the team that an API key belongs to; NotFound or Unauthenticated
// when there is none.
type keys interface {
	Team(ctx context.Context, key string) (*hearth.Team, error)
	TeamByHash(ctx context.Context, hash string) (*hearth.Team, error)
}

// throttle slows down those who try keys. It is the API's own, so that wrong
// keys count wherever they are tried.
type throttle interface {
	// Wait says for how long the client has to stay away; 0 lets it in.
	Wait(client string) time.Duration
	// Failed counts a wrong key against the client.
	Failed(client string)
}

// site is the handler of all pages.
type site struct {
	Deps
	pages    *template.Template
	style    []byte
	sessions *sessions
	foreign  *http.CrossOriginProtection
}

// New returns the handler of everything below Root.
func New(d Deps) (http.Handler, error) {
	if d.Sandboxes == nil || d.Keys == nil || d.Hash == nil || d.Log == nil {
		return nil, errors.New("dash: Sandboxes, Keys, Hash and Log are required")
	}
	pages, err := template.ParseFS(files, "pages/*.html")
	if err != nil {
		return nil, fmt.Errorf("dash: %w", err)
	}
	style, err := files.ReadFile("pages/style.css")
	if err != nil {
		return nil, fmt.Errorf("dash: %w", err)
	}
	return &site{Deps: d, pages: pages, style: style, sessions: newSessions(), foreign: http.NewCrossOriginProtection()}, nil
}

// Matches reports whether a request is for the dashboard.
func Matches(r *http.Request) bool {
	return r.URL.Path+"/" == Root || strings.HasPrefix(r.URL.Path, Root)
}

// visit is one request and what became of it.
type visit struct {
	w      http.ResponseWriter
	r      *http.Request
	id     string // names the request in the log and on error pages
	route  string
	team   *hearth.Team // nil: nobody has signed in
	status int          // of the answer; 0: there is none yet
	err    error
}

// ServeHTTP answers a request and writes its only log line.
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(r.Context(), requestTime)
	defer cancel()
	v := &visit{w: w, r: r.WithContext(ctx), id: requestID()}
	harden(w.Header())
	w.Header().Set("X-Request-Id", v.id)
	defer func() {
		p := recover()
		if p == http.ErrAbortHandler {
			panic(p) // net/http's own way to cut the connection
		}
		if p != nil {
			s.fail(v, fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
		}
		s.log(v, time.Since(began))
	}()
	if err := s.route(v); err != nil {
		s.fail(v, err)
	}
}

// harden sets what browsers are told with every answer.
//
// The referrer stays within the origin rather than being withheld: a browser
// that withholds it sends forms without their origin, too.
func harden(h http.Header) {
	for name, value := range map[string]string{
		"Content-Security-Policy":      "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
		"X-Content-Type-Options":       "nosniff",
		"X-Frame-Options":              "DENY",
		"Referrer-Policy":              "same-origin",
		"Cache-Control":                "no-store",
		"Cross-Origin-Opener-Policy":   "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
	} {
		h.Set(name, value)
	}
}

// route finds the page that a request is for.
func (s *site) route(v *visit) error {
	path, ok := strings.CutPrefix(v.r.URL.Path, Root)
	if !ok {
		v.route = "/dash"
		return s.get(v, func(v *visit) error { return v.redirect("") })
	}
	v.route = Root + path
	switch path {
	case "style.css":
		return s.get(v, func(v *visit) error { return v.write(http.StatusOK, "text/css; charset=utf-8", s.style) })
	case "":
		return s.get(v, s.signedIn(s.list))
	case "sign-in":
		if v.r.Method == http.MethodPost {
			return s.post(v, s.signIn)
		}
		return s.get(v, s.askForKey)
	case "sign-out":
		return s.post(v, s.signOut)
	}
	v.route = Root + "*" // what is asked for is the caller's own
	if id, ok := strings.CutPrefix(path, "sandboxes/"); ok {
		v.route = Root + "sandboxes/{id}"
		return s.get(v, s.signedIn(func(v *visit) error { return s.one(v, id) }))
	}
	return hearth.Errorf(hearth.NotFound, "There is no such page")
}

func (s *site) get(v *visit, page func(*visit) error) error {
	switch v.r.Method {
	case http.MethodGet, http.MethodHead:
	default:
		return v.disallow("GET, HEAD")
	}
	return s.window(v, page)
}

// post lets a form through that a page of this origin has sent.
func (s *site) post(v *visit, page func(*visit) error) error {
	if v.r.Method != http.MethodPost {
		return v.disallow(http.MethodPost)
	}
	if err := s.foreign.Check(v.r); err != nil {
		return hearth.Wrap(hearth.PermissionDenied, err, "This form was sent by another site")
	}
	return s.window(v, page)
}

// window refuses what scripts, frames and embedding pages ask for. Browsers say
// so themselves, and no page can forge it; who is no browser has no session of one.
func (s *site) window(v *visit, page func(*visit) error) error {
	switch dest := v.r.Header.Get("Sec-Fetch-Dest"); {
	case dest == "", dest == "document", dest == "style" && v.route == Root+"style.css":
		return page(v)
	}
	return hearth.Errorf(hearth.PermissionDenied, "The dashboard answers a browser's window alone")
}

// disallow refuses a method.
func (v *visit) disallow(allowed string) error {
	v.w.Header().Set("Allow", allowed)
	return errMethod
}

// errMethod is the one error that has a status of its own.
var errMethod = hearth.Errorf(hearth.Unimplemented, "This page cannot be asked for like that")

// statusOf is the table of errors: the HTTP status for every kind that pages meet.
func statusOf(err error) int {
	if err == errMethod {
		return http.StatusMethodNotAllowed
	}
	kind := hearth.KindOf(err)
	switch {
	case kind != hearth.Internal:
	case errors.Is(err, context.DeadlineExceeded):
		kind = hearth.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		kind = hearth.Canceled
	}
	switch kind {
	case hearth.InvalidArgument:
		return http.StatusBadRequest
	case hearth.Unauthenticated:
		return http.StatusUnauthorized
	case hearth.PermissionDenied:
		return http.StatusForbidden
	case hearth.NotFound:
		return http.StatusNotFound
	case hearth.ResourceExhausted:
		return http.StatusTooManyRequests
	case hearth.Unavailable, hearth.Aborted, hearth.Canceled: // nobody reads the last
		return http.StatusServiceUnavailable
	case hearth.DeadlineExceeded:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// fail answers with a page that names no causes; those are in the log.
func (s *site) fail(v *visit, err error) {
	v.err = err
	if v.status != 0 {
		return // too late for another answer
	}
	status := statusOf(err)
	f := failure{Status: status, Name: http.StatusText(status), Request: v.id}
	if e, ok := errors.AsType[*hearth.Error](err); ok && e.Kind != hearth.Internal {
		f.Message = e.Msg
	}
	if err := s.render(v, status, "error", f); err != nil {
		v.err = errors.Join(v.err, err)
		_ = v.write(http.StatusInternalServerError, "text/plain; charset=utf-8", []byte("Internal server error (request "+v.id+")\n"))
	}
}

// render writes a page, whole or not at all.
func (s *site) render(v *visit, status int, name string, body any) error {
	var out bytes.Buffer
	p := page{Root: Root, Body: body}
	if v.team != nil {
		p.Team = v.team.Name
	}
	if err := s.pages.ExecuteTemplate(&out, name, p); err != nil {
		return err
	}
	return v.write(status, "text/html; charset=utf-8", out.Bytes())
}

func (v *visit) write(status int, kind string, body []byte) error {
	v.status = status
	v.w.Header().Set("Content-Type", kind)
	v.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	v.w.WriteHeader(status)
	_, _ = v.w.Write(body) // the client is gone if this fails
	return nil
}

// redirect sends the browser to another page with a GET.
func (v *visit) redirect(page string) error {
	v.w.Header().Set("Location", Root+page)
	return v.write(http.StatusSeeOther, "text/plain; charset=utf-8", nil)
}

func (s *site) log(v *visit, took time.Duration) {
	level := slog.LevelInfo
	if v.status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	attrs := []slog.Attr{
		slog.String("method", v.r.Method), slog.String("route", v.route), slog.Int("status", v.status),
		slog.Float64("ms", float64(took.Microseconds())/1000), slog.String("request", v.id),
	}
	if v.team != nil {
		attrs = append(attrs, slog.String("team", string(v.team.ID)))
	}
	if v.err != nil {
		attrs = append(attrs, slog.String("error", v.err.Error()))
	}
	s.Log.LogAttrs(v.r.Context(), level, "page", attrs...)
}

func requestID() string {
	var b [8]byte
	rand.Read(b[:]) // never fails: the runtime aborts when the kernel has no entropy
	return hex.EncodeToString(b[:])
}
