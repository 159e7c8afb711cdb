// Package edge is the way into sandboxes: it finds out which sandbox and port a
// request is for, checks that it may pass, and hands it through. The control
// plane and the store are not on this path.
//
// A request names its target in one of three ways: by host name,
// <port>-<sandbox>[-anything].<domain>; by the headers E2b-Sandbox-Id and
// E2b-Sandbox-Port on any other host; or, for the guest daemon's /files alone,
// by a signed URL, whose signature tells the sandbox.
//
// Bodies stream both ways without buffering, upgraded connections are spliced,
// and the guest sees the client's request: Host and path as they were, nothing
// added. Taken away are hop-by-hop and X-Forwarded headers, the traffic token,
// and the header that carries the host's own secret.
//
// Connections into a sandbox belong to one life of it. Drop ends that life: open
// streams break at once, and no connection is ever used for the next machine of
// the same sandbox.
package edge

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hearth/internal/edge/label"
	"hearth/internal/guest"
	"hearth/internal/hearth"
)

// Headers that clients send.
const (
	SandboxHeader = "E2b-Sandbox-Id"
	PortHeader    = "E2b-Sandbox-Port"
	TokenHeader   = "E2b-Traffic-Access-Token" // for ports of a sandbox with private ingress
	GuestHeader   = "X-Access-Token"           // for the guest daemon, which checks it
)

// Defaults of Config.
const (
	DefaultConnections = 2000
	DefaultDialTimeout = 10 * time.Second
	DefaultWakeTimeout = time.Minute
	DefaultStepTimeout = 30 * time.Second
)

// Config says how an Edge behaves. The zero value of a field stands for its default.
type Config struct {
	// Domain is the base of sandbox host names; a port in it is ignored. Empty:
	// requests are routed by header only.
	Domain string

	// Connections is how many requests may be under way to one sandbox.
	Connections int

	// Total is how many requests may be under way to all sandboxes together; each
	// takes a descriptor of this process. Zero: no limit.
	Total int

	// DialTimeout bounds all attempts to reach a port.
	DialTimeout time.Duration

	// WakeTimeout bounds how long a request waits for a paused sandbox to be resumed.
	WakeTimeout time.Duration

	// StepTimeout bounds how long the end of an answer waits for a step of the
	// sandbox's history.
	StepTimeout time.Duration
}

// Deps are the parts an Edge works with. Signed, Waker, Stepper and Log may be nil.
type Deps struct {
	Resolver Resolver
	Dialer   Dialer
	Signed   Signed
	Waker    Waker
	Stepper  Stepper
	Log      *slog.Logger
}

// Route is what the edge has to know of a sandbox.
type Route struct {
	Sandbox         hearth.SandboxID
	State           hearth.State
	Life            int64  // grows with every machine the sandbox gets
	PrivateIngress  bool   // ports but the guest daemon's ask for TrafficToken
	TrafficToken    string // never empty if PrivateIngress
	MaskRequestHost string // Host that the guest sees; empty: the client's
	History         bool   // a step is taken after each command and cell
}

// Resolver says where a sandbox is. It is asked for every request: it answers
// from memory. An unknown sandbox is a NotFound error.
type Resolver interface {
	Resolve(ctx context.Context, id hearth.SandboxID) (Route, error)
}

// Dialer connects to a TCP port of a running sandbox. The error for a port on
// which nothing listens wraps ECONNREFUSED.
type Dialer interface {
	DialSandbox(ctx context.Context, id hearth.SandboxID, port uint16) (net.Conn, error)
}

// Signed finds the sandbox whose token made the signature of a file URL. Errors:
// NotFound if there is none, Unauthenticated with the message to show if the
// signature holds no longer.
type Signed interface {
	FindSigned(ctx context.Context, url SignedURL) (hearth.SandboxID, error)
}

// SignedURL is what the signature of a file URL covers, as the client sent it.
type SignedURL struct {
	Path       string
	Operation  string // "read" or "write"
	User       string
	Expiration string // unix seconds; empty: none
	Signature  string
}

// Waker resumes a paused sandbox, if traffic may do that and the token is right.
// Calls for one sandbox share one resume. Errors: NotFound if traffic does not
// resume it, PermissionDenied if the token is wrong, ResourceExhausted with the
// message to show when there is no room, Aborted to try again in a moment,
// Unavailable or DeadlineExceeded with the message to show when it did not start.
type Waker interface {
	Wake(ctx context.Context, id hearth.SandboxID, knock Knock) (Route, error)
}

// Knock is the request that wakes a sandbox.
type Knock struct {
	Port  uint16
	Token string    // the guest's access token for its own port, the traffic token for others
	File  SignedURL // instead of a token for the guest's own port; the zero value: none
}

// Edge serves sandbox traffic. Its methods are safe for concurrent use.
type Edge struct {
	cfg       Config
	domain    string // lower case, without port
	deps      Deps
	bulk      *buffers               // of large transfers
	small     *buffers               // of streams and plain requests
	transfers *httputil.ReverseProxy // for what is fast and ends
	streams   *httputil.ReverseProxy // for what trickles and stays
	passing   atomic.Int64           // requests under way

	mu    sync.Mutex
	lives map[hearth.SandboxID]*life
}

// New returns an Edge.
func New(cfg Config, deps Deps) *Edge {
	if cfg.Connections <= 0 {
		cfg.Connections = DefaultConnections
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = DefaultDialTimeout
	}
	if cfg.WakeTimeout <= 0 {
		cfg.WakeTimeout = DefaultWakeTimeout
	}
	if cfg.StepTimeout <= 0 {
		cfg.StepTimeout = DefaultStepTimeout
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	e := &Edge{
		cfg: cfg, domain: hostname(cfg.Domain), deps: deps,
		bulk: &buffers{size: bulkBuffer}, small: &buffers{size: streamBuffer}, lives: make(map[hearth.SandboxID]*life),
	}
	e.transfers, e.streams = e.newProxy(e.bulk), e.newProxy(e.small)
	return e
}

func (e *Edge) newProxy(b *buffers) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite:       rewrite,
		Transport:     throughLife{},
		FlushInterval: -1, // at once
		BufferPool:    b,
		ModifyResponse: func(resp *http.Response) error {
			resp.Request.Context().Value(requestKey{}).(*request).early(resp.Header)
			return nil
		},
		ErrorHandler: e.failed,
		ErrorLog:     log.New(quiet{e.deps.Log}, "", 0),
	}
}

// request is what the edge knows of one request while it passes.
type request struct {
	target target
	route  Route
	life   *life
	step   *step // nil: it is none
	body   *body // nil: it has none
	sent   *sent // what the lane has begun; nil: nothing
	shared bool  // it came by a signed URL: the host name is not the sandbox's own
}

type requestKey struct{}

// ServeHTTP passes a request on, or says why not.
func (e *Edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begun := takeSent(r.Context())
	defer begun.drop()
	if a := oversized(r); a != nil {
		a.send(w, r)
		return
	}
	t, a := e.target(r)
	if a != nil {
		a.send(w, r)
		return
	}
	if t.port == guest.Port && reserved(r) {
		reservedAnswer(r).send(w, r)
		return
	}
	route, a := e.admit(r, t)
	if a != nil {
		a.send(w, r)
		return
	}
	l, a := e.enter(route)
	if a != nil {
		a.send(w, r)
		return
	}
	defer l.leave()
	defer e.passing.Add(-1)
	if n := e.passing.Add(1); e.cfg.Total > 0 && n > int64(e.cfg.Total) {
		crowded(t, e.cfg.Total).send(w, r)
		return
	}
	// A guest may answer before it has read the whole request. Without this, the
	// first byte of the answer would take the rest of the request away from the
	// transport, which then breaks the answer off.
	_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 is, always
	q := &request{target: t, route: route, life: l, sent: begun, shared: !hasTarget(r) && !e.ours(r.Host)}
	if route.History {
		q.step, r = e.steps(r, t)
	}
	ctx := context.WithValue(r.Context(), requestKey{}, q)
	proxy := e.transfers
	if isStream(r) {
		proxy = e.streams
	}
	r = r.WithContext(ctx)
	if r.ProtoMajor == 1 && r.ContentLength != 0 {
		q.body = &body{ReadCloser: r.Body}
		r.Body = q.body
	}
	proxy.ServeHTTP(w, r)
}

// body is the body of a request over HTTP/1.
type body struct {
	io.ReadCloser
	all atomic.Bool // it was received to its end
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.all.Store(true)
	}
	return n, err
}

// early lets the client's connection end with an answer that begins before the
// request's body was received. The server does not wait for the rest for ever, and
// then would read what comes of it as the next request.
func (q *request) early(h http.Header) {
	if q.body != nil && !q.body.all.Load() {
		h.Set("Connection", "close")
	}
}

// isStream reports whether an answer will trickle for a long time: a stream of
// the guest daemon's protocol (a command's output, a terminal, a watched
// directory), server-sent events, an upgraded connection. There may be thousands
// of these, each with a buffer.
func isStream(r *http.Request) bool {
	return label.Framed(r.Header.Get("Content-Type")) ||
		strings.Contains(r.Header.Get("Accept"), "text/event-stream") || r.Header.Get("Upgrade") != ""
}

// admit finds the sandbox's route, waking it if need be, and checks the token.
func (e *Edge) admit(r *http.Request, t target) (Route, *answer) {
	route, err := e.deps.Resolver.Resolve(r.Context(), t.id)
	if err == nil && route.State != hearth.Running {
		route, err = e.wake(r, t, route)
	}
	if err != nil {
		return Route{}, e.refusal(t, err)
	}
	if a := authorize(r, t, route); a != nil {
		return Route{}, a
	}
	return route, nil
}

// wake waits until a sandbox that does not run does so.
func (e *Edge) wake(r *http.Request, t target, route Route) (Route, error) {
	s := route.State
	wakes := s == hearth.Pausing || s == hearth.Paused || s == hearth.Resuming
	switch {
	case wakes && e.deps.Waker != nil:
		knock := Knock{Port: t.port, Token: r.Header.Get(TokenHeader)}
		if t.port == guest.Port {
			knock.Token = r.Header.Get(GuestHeader)
			if knock.Token == "" && e.signed(r) { // the guest, too, looks at the token first
				knock.File = signedURL(r)
			}
		}
		ctx, cancel := context.WithTimeoutCause(r.Context(), e.cfg.WakeTimeout,
			hearth.Errorf(hearth.DeadlineExceeded, "it did not start within %s", e.cfg.WakeTimeout))
		defer cancel()
		return e.deps.Waker.Wake(ctx, t.id, knock)
	case s == hearth.Creating || s == hearth.Pausing || s == hearth.Reverting:
		return Route{}, hearth.Errorf(hearth.Aborted, "sandbox %s is %s", t.id, s)
	}
	return Route{}, hearth.Errorf(hearth.NotFound, "sandbox %s is %s", t.id, route.State)
}

// refusal turns the error of a resolver or waker into an answer.
func (e *Edge) refusal(t target, err error) *answer {
	switch hearth.KindOf(err) {
	case hearth.PermissionDenied, hearth.Unauthenticated:
		return notResumable(t)
	case hearth.Aborted, hearth.FailedPrecondition:
		return transitioning(t)
	case hearth.Unavailable, hearth.DeadlineExceeded:
		return notResumed(t, err)
	case hearth.ResourceExhausted:
		return exhausted(t, err)
	case hearth.NotFound:
		e.Drop(t.id) // should nobody have told us
	case hearth.Canceled:
	default:
		e.deps.Log.Warn("a sandbox cannot be resolved", "sandbox", t.id, "error", err)
	}
	return notFound(t)
}

// authorize checks the traffic token. The guest daemon has a token of its own
// and checks it itself.
func authorize(r *http.Request, t target, route Route) *answer {
	if !route.PrivateIngress || t.port == guest.Port {
		return nil
	}
	given := r.Header.Values(TokenHeader)
	if len(given) == 0 || given[0] == "" {
		return tokenMissing(t)
	}
	if len(given) > 1 || !route.admits(given[0]) {
		return tokenWrong(t)
	}
	return nil
}

// admits reports whether a token is the sandbox's.
func (r Route) admits(token string) bool {
	want, got := sha256.Sum256([]byte(r.TrafficToken)), sha256.Sum256([]byte(token))
	return r.TrafficToken != "" && hmac.Equal(want[:], got[:])
}

// rewrite makes the request that the guest gets.
func rewrite(p *httputil.ProxyRequest) {
	q := p.In.Context().Value(requestKey{}).(*request)
	out := p.Out
	out.URL.Scheme = "http"
	out.URL.Host = "sandbox:" + strconv.Itoa(int(q.target.port)) // the key of the connection pool
	out.URL.RawQuery = p.In.URL.RawQuery
	out.Host = p.In.Host
	out.Header.Del(guest.ControlHeader)
	out.Header.Del(TokenHeader)
	if !mayUpgrade(q.target, out) {
		out.Header.Del("Upgrade")
		out.Header.Del("Http2-Settings")
		out.Header.Del("Connection")
	}
	if mask := q.route.MaskRequestHost; mask != "" && q.target.port != guest.Port {
		out.Host = strings.ReplaceAll(mask, "${PORT}", strconv.Itoa(int(q.target.port)))
		out.Header.Set("X-Forwarded-Host", p.In.Host)
	}
}

// mayUpgrade reports whether a request may turn its connection into a tunnel,
// through which the edge sees nothing any more. None into the guest daemon, whose
// reserved endpoints must stay out of reach; and none to HTTP/2, which carries
// further requests.
func mayUpgrade(t target, out *http.Request) bool {
	upgrade := strings.ToLower(out.Header.Get("Upgrade"))
	return t.port != guest.Port && !strings.Contains(upgrade, "h2")
}

// throughLife sends requests over the connections of their sandbox's life.
type throughLife struct{}

func (throughLife) RoundTrip(r *http.Request) (*http.Response, error) {
	q := r.Context().Value(requestKey{}).(*request)
	send := q.life.transport.RoundTrip
	if q.sent != nil {
		send = q.sent.answer
	}
	resp, err := send(r)
	if err == nil && q.step != nil {
		q.step.follow(resp)
	}
	if err == nil && q.shared {
		disown(resp.Header)
	}
	return resp, err
}

// wholeOrigin are the headers of an answer that say something of every page of its origin.
var wholeOrigin = [...]string{"Set-Cookie", "Clear-Site-Data", "Strict-Transport-Security", "Alt-Svc", "Nel", "Report-To", "Reporting-Endpoints"}

// disown takes the host name away from an answer that a browser may open: what a
// sandbox sends is no page of the API's origin, which has the dashboard, too.
func disown(h http.Header) {
	h.Add("Content-Security-Policy", "sandbox")
	for _, name := range wholeOrigin {
		h.Del(name)
	}
}

// Sizes of copy buffers, in bytes. Each copy costs two system calls, which is
// what bounds a large transfer.
const (
	bulkBuffer   = 256 << 10
	streamBuffer = 16 << 10
)

// buffers lends the buffers through which bodies are copied.
type buffers struct {
	size int
	pool sync.Pool
}

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, b.size)
}

// Put implements httputil.BufferPool.
func (b *buffers) Put(p []byte) { b.pool.Put(&p) }

// quiet logs what the proxy says of broken streams, of which there are many.
type quiet struct{ log *slog.Logger }

func (q quiet) Write(p []byte) (int, error) {
	q.log.Debug("sandbox traffic", "message", strings.TrimSpace(string(p)))
	return len(p), nil
}
