package edge

import (
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net/http"
	"slices"
	"strings"

	"hearth/internal/hearth"
)

// answer is what the edge itself says, in the form E2B clients know.
type answer struct {
	Sandbox hearth.SandboxID `json:"sandboxId,omitempty"`
	Message string           `json:"message"`
	Port    uint16           `json:"port,omitempty"`
	Path    string           `json:"path,omitempty"`
	Limit   int              `json:"connectionLimit,omitempty"`
	Code    int              `json:"code"`

	text bool // plain text: the request could not be read
}

func plain(code int, message string) *answer {
	return &answer{Code: code, Message: message, text: true}
}

// invalid is the answer to a request whose target cannot be read; nil if err is.
func invalid(err error) *answer {
	if err == nil {
		return nil
	}
	return plain(http.StatusBadRequest, hearth.Shown(err))
}

func notFound(t target) *answer {
	return &answer{Sandbox: t.id, Message: "The sandbox was not found", Code: http.StatusBadGateway}
}

func portClosed(t target) *answer {
	return &answer{Sandbox: t.id, Message: "The sandbox is running but port is not open", Port: t.port, Code: http.StatusBadGateway}
}

func tokenMissing(t target) *answer {
	return &answer{Sandbox: t.id, Code: http.StatusForbidden, Message: "Sandbox is secured with traffic access token. " +
		"Token header 'e2b-traffic-access-token' is missing"}
}

func tokenWrong(t target) *answer {
	return &answer{Sandbox: t.id, Code: http.StatusForbidden, Message: "Sandbox is secured with traffic access token. " +
		"Provided token in header 'e2b-traffic-access-token' is invalid"}
}

func notResumable(t target) *answer {
	return &answer{Sandbox: t.id, Code: http.StatusForbidden, Message: "This sandbox can't be resumed with the credentials provided. " +
		"Send its access token, or resume it through the API."}
}

func transitioning(t target) *answer {
	return &answer{Sandbox: t.id, Message: "The sandbox is still transitioning. Try again in a moment.", Code: http.StatusConflict}
}

func exhausted(t target, err error) *answer {
	message := "Sandbox limit reached"
	if e, ok := errors.AsType[*hearth.Error](err); ok && e.Msg != "" {
		message = e.Msg
	}
	return &answer{Sandbox: t.id, Message: message, Code: http.StatusTooManyRequests}
}

func notResumed(t target, err error) *answer {
	return &answer{Sandbox: t.id, Message: "The sandbox could not be resumed: " + hearth.Shown(err), Code: http.StatusServiceUnavailable}
}

func tooMany(t target, limit int) *answer {
	return &answer{Sandbox: t.id, Code: http.StatusTooManyRequests, Limit: limit,
		Message: fmt.Sprintf("The sandbox has %d connections open, which is the limit", limit)}
}

func crowded(t target, limit int) *answer {
	return &answer{Sandbox: t.id, Code: http.StatusServiceUnavailable, Limit: limit,
		Message: fmt.Sprintf("The server has %d connections to sandboxes open, which is the limit", limit)}
}

func reservedAnswer(r *http.Request) *answer {
	return &answer{Message: "This endpoint is reserved for the platform", Path: r.URL.Path, Code: http.StatusNotFound}
}

// failed answers a request that could not be passed on.
func (e *Edge) failed(w http.ResponseWriter, r *http.Request, err error) {
	q := r.Context().Value(requestKey{}).(*request)
	q.early(w.Header())
	if r.Context().Err() != nil && !q.life.ended() {
		w.WriteHeader(http.StatusBadGateway) // the client has gone; nobody reads this
		return
	}
	e.deps.Log.Debug("a request could not be passed on", "sandbox", q.target.id, "port", q.target.port, "error", err)
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		plain(http.StatusRequestEntityTooLarge, "request body is too large").send(w, r)
		return
	}
	if q.life.ended() || hearth.KindOf(err) == hearth.NotFound {
		notFound(q.target).send(w, r)
		return
	}
	portClosed(q.target).send(w, r)
}

// send writes the answer as JSON, or as a page for people.
func (a *answer) send(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if a.text {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(a.Code)
		_, _ = fmt.Fprintln(w, a.Message)
		return
	}
	if isBrowser(r.Header) {
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		w.WriteHeader(a.Code)
		_, _ = w.Write(a.page())
		return
	}
	h.Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(a.Code)
	_ = json.NewEncoder(w).Encode(a)
}

func (a *answer) page() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `<!doctype html><html lang="en"><meta charset="utf-8"><title>%d</title>`+
		`<style>body{font:16px system-ui;margin:15vh auto;max-width:34em;padding:0 1em}code{background:#8882;padding:.1em .3em}</style>`+
		`<h1>%s</h1>`, a.Code, html.EscapeString(a.Message))
	if a.Sandbox != "" {
		fmt.Fprintf(&b, `<p>Sandbox <code>%s</code></p>`, html.EscapeString(string(a.Sandbox)))
	}
	if a.Port != 0 {
		fmt.Fprintf(&b, `<p>Nothing listens on port <code>%d</code> yet. Start a server there, then reload.</p>`, a.Port)
	}
	return []byte(b.String())
}

// isBrowser reports whether a person waits for the answer: a browser that loads
// a page, not a program or a page's script.
func isBrowser(h http.Header) bool {
	agent := strings.ToLower(h.Get("User-Agent"))
	names := []string{"mozilla", "chrome", "safari", "firefox", "edge", "opera", "msie"}
	if !slices.ContainsFunc(names, func(n string) bool { return strings.Contains(agent, n) }) {
		return false
	}
	accept := strings.ToLower(h.Get("Accept"))
	if strings.Contains(accept, "application/json") && !strings.Contains(accept, "text/html") {
		return false
	}
	switch strings.ToLower(h.Get("Sec-Fetch-Mode")) {
	case "cors", "no-cors", "same-origin", "websocket":
		return false
	}
	return h.Get("X-Requested-With") == ""
}
