package edge

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"

	"hearth/internal/guest"
	"hearth/internal/hearth"
)

// target is where a request wants to go.
type target struct {
	id   hearth.SandboxID
	port uint16
}

// Bounds of a request's headers. Go's server bounds their total, too, but a
// guest should not have to.
const (
	maxFields = 200
	maxHeader = 64 << 10 // bytes of names and values
)

// Matches reports whether a request is sandbox traffic, so that one listener can
// serve the control plane and the edge.
func (e *Edge) Matches(r *http.Request) bool {
	return hasTarget(r) || e.ours(r.Host) || e.signed(r)
}

func hasTarget(r *http.Request) bool {
	return len(r.Header[SandboxHeader]) > 0 || len(r.Header[PortHeader]) > 0
}

// signed reports whether a request is for a signed file URL.
func (e *Edge) signed(r *http.Request) bool {
	return e.deps.Signed != nil && r.URL.Path == "/files" && r.URL.Query().Has("signature")
}

// ours reports whether a host name is a sandbox's: one label below the domain,
// other than the control plane's.
func (e *Edge) ours(host string) bool {
	if e.domain == "" {
		return false
	}
	label, found := strings.CutSuffix(hostname(host), "."+e.domain)
	return found && label != "" && label != "api"
}

// target finds out where a request wants to go. A sandbox's own host name beats
// headers, so that a page served by one sandbox speaks for that one only.
func (e *Edge) target(r *http.Request) (target, *answer) {
	if r.Method == http.MethodConnect {
		return target{}, plain(http.StatusMethodNotAllowed, "CONNECT is not supported")
	}
	shared := e.domain != "" && hostname(r.Host) == "sandbox."+e.domain
	switch {
	case e.ours(r.Host) && !shared:
		t, err := parseHost(r.Host)
		return t, invalid(err)
	case hasTarget(r) || shared:
		return fromHeaders(r.Header)
	case e.signed(r):
		return e.fromSignature(r)
	}
	t, err := parseHost(r.Host)
	if err == nil && e.domain != "" {
		return target{}, plain(http.StatusBadRequest, "Invalid host")
	}
	return t, invalid(err)
}

func fromHeaders(h http.Header) (target, *answer) {
	ids, ports := h[SandboxHeader], h[PortHeader]
	if len(ids) == 0 || len(ports) == 0 {
		return target{}, plain(http.StatusBadRequest, "missing header")
	}
	if len(ids) > 1 || len(ports) > 1 {
		return target{}, plain(http.StatusBadRequest, "repeated header")
	}
	port, err := parsePort(ports[0])
	if err != nil {
		return target{}, invalid(err)
	}
	id, err := hearth.ParseSandboxID(ids[0])
	return target{id, port}, invalid(err)
}

func (e *Edge) fromSignature(r *http.Request) (target, *answer) {
	refused := &answer{Code: http.StatusUnauthorized, Message: "invalid signature"}
	u := signedURL(r)
	if !u.plausible() {
		return target{}, refused
	}
	id, err := e.deps.Signed.FindSigned(r.Context(), u)
	if hearth.KindOf(err) == hearth.Unauthenticated {
		refused.Message = hearth.Shown(err)
	}
	if err != nil {
		return target{}, refused
	}
	return target{id, guest.Port}, nil
}

// signedURL reads what the signature of a request for a file covers.
func signedURL(r *http.Request) SignedURL {
	q := r.URL.Query()
	operation := "read"
	method := r.Method
	if method == http.MethodOptions {
		method = r.Header.Get("Access-Control-Request-Method")
	}
	if method != http.MethodGet && method != http.MethodHead {
		operation = "write"
	}
	return SignedURL{
		Path: q.Get("path"), Operation: operation, User: q.Get("username"),
		Expiration: q.Get("signature_expiration"), Signature: q.Get("signature"),
	}
}

// Bounds of a signed URL: what no file of a guest can have, and the length of
// "v1_" and a SHA-256 in base64 without padding.
const (
	maxSignedPath   = 4096
	maxSignedUser   = 256
	maxSignedExpiry = 20
	signatureLength = 46
)

// plausible reports whether it is worth looking for who signed. A stranger makes
// us hash the URL once for every sandbox, so the URL must be small.
func (u SignedURL) plausible() bool {
	return len(u.Path) <= maxSignedPath && len(u.User) <= maxSignedUser && len(u.Expiration) <= maxSignedExpiry &&
		len(u.Signature) == signatureLength && strings.HasPrefix(u.Signature, "v1_")
}

// parseHost reads <port>-<sandbox>[-anything].<domain>[:<port>].
func parseHost(host string) (target, error) {
	host = hostname(host)
	label, _, dot := strings.Cut(host, ".")
	number, rest, dash := strings.Cut(label, "-")
	if _, err := netip.ParseAddr(host); err == nil || !dot || !dash {
		return target{}, hearth.Errorf(hearth.InvalidArgument, "Invalid host")
	}
	port, err := parsePort(number)
	if err != nil {
		return target{}, err
	}
	id, err := hearth.ParseSandboxID(rest)
	if err != nil {
		return target{}, err
	}
	return target{id, port}, nil
}

// parsePort reads a port in decimal digits, nothing else.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' || s[0] == '0' {
		return 0, hearth.Errorf(hearth.InvalidArgument, "Invalid sandbox port")
	}
	return uint16(n), nil
}

// hostname returns a Host header's name in lower case, without port, brackets
// and final dot.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}

// oversized refuses headers out of proportion.
func oversized(r *http.Request) *answer {
	fields, size := 0, len(r.RequestURI)
	for name, values := range r.Header {
		for _, v := range values {
			fields++
			size += len(name) + len(v)
		}
	}
	if fields > maxFields || size > maxHeader {
		return plain(http.StatusRequestHeaderFieldsTooLarge, "request headers are too large")
	}
	return nil
}

// reserved reports whether a request to the guest daemon is for one of the
// endpoints that are for the host alone, however its path is written. What the
// daemon would not take for such a path may be refused, too.
func reserved(r *http.Request) bool {
	for _, p := range []string{r.URL.Path, r.URL.EscapedPath(), r.URL.Opaque} {
		for range 3 { // encoded more than once
			first, _, _ := strings.Cut(strings.TrimPrefix(cleaned(p), "/"), "/")
			if isReserved("/" + first) {
				return true
			}
			decoded, err := url.PathUnescape(p)
			if err != nil || decoded == p {
				break
			}
			p = decoded
		}
	}
	return false
}

func cleaned(p string) string {
	return strings.ToLower(path.Clean("/" + strings.ReplaceAll(p, `\`, "/")))
}

func isReserved(p string) bool {
	switch p, _, _ = strings.Cut(p, ";"); p {
	case guest.InitPath, guest.QuiescePath, guest.ForwardPath, guest.RehearsePath, guest.InventoryPath,
		"/freeze", "/unfreeze", "/fsfreeze", "/fsthaw", "/collapse", "/upgrade":
		return true
	}
	return false
}
