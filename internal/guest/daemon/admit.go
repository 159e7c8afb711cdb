package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"

	"hearth/internal/guest"
	"hearth/internal/guest/files"
	"hearth/internal/hearth"
)

const (
	tokenHeader = "X-Access-Token"

	unauthorizedText = "unauthorized access, please provide a valid access token or method signing if supported"
)

func unauthorized(w http.ResponseWriter, msg string) {
	files.WriteError(w, http.StatusUnauthorized, msg)
}

// sealed is the answer before Init and after Quiesce.
func sealed(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "1")
	files.WriteError(w, http.StatusServiceUnavailable, "the sandbox is not initialised yet")
}

// admit lets a request through only if the daemon serves and the caller may call.
// The host's secret opens everything that a user's token opens.
func (d *Daemon) admit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := d.state.get()
		control := r.Header.Get(guest.ControlHeader)
		switch path := r.URL.Path; {
		case path == "/health", path == guest.InitPath, path == guest.QuiescePath, path == guest.RehearsePath, path == guest.InventoryPath:
			// These check who calls, or whose the daemon is, themselves.
		case now.sealed && !now.wait.over(r.Context()):
			sealed(w)
			return
		case now.sealed: // no more: look again
			d.admit(next).ServeHTTP(w, r)
			return
		case path == guest.ForwardPath:
			if !now.host(control) {
				unauthorized(w, "the control secret is missing or wrong")
				return
			}
		case path == "/files":
			// Token or signature: guardFile.
		case !now.user(r.Header.Get(tokenHeader)) && !now.host(control):
			unauthorized(w, unauthorizedText)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// maxHold bounds how long a request waits for a seal to be lifted.
const maxHold = time.Minute

// over waits until the seal is lifted. It is false where the caller must not be
// served: at once without a hold, and in a machine that was started from the
// checkpoint, for the request was made to another one, which serves it.
func (h *hold) over(ctx context.Context) bool {
	if h == nil {
		return false
	}
	late := time.NewTimer(maxHold)
	defer late.Stop()
	select {
	case <-h.lifted:
		return h.goesOn
	case <-ctx.Done():
	case <-late.C:
	}
	return false
}

// guardFile admits a transfer by token or by signature.
func (d *Daemon) guardFile(r *http.Request, op files.Op) error {
	now := d.state.get()
	if now.token == "" || now.host(r.Header.Get(guest.ControlHeader)) {
		return nil
	}
	if header := r.Header.Get(tokenHeader); header != "" {
		if now.user(header) {
			return nil
		}
		return hearth.Errorf(hearth.Unauthenticated, "access token present in header but does not match")
	}
	return verify(r, op, now.token, time.Now())
}

// verify checks a request's signature.
func verify(r *http.Request, op files.Op, token string, now time.Time) error {
	q := r.URL.Query()
	given := q.Get("signature")
	if given == "" {
		return hearth.Errorf(hearth.Unauthenticated, "missing signature query parameter")
	}
	var expires *int64
	if raw := q.Get("signature_expiration"); raw != "" {
		n, err := strconv.ParseInt(raw, 10, 64)
		if err != nil {
			return hearth.Errorf(hearth.Unauthenticated, "invalid signature expiration format")
		}
		expires = &n
	}
	if !same(given, Sign(op, q.Get("path"), q.Get("username"), token, expires)) {
		return hearth.Errorf(hearth.Unauthenticated, "invalid signature")
	}
	if expires != nil && *expires < now.Unix() {
		return hearth.Errorf(hearth.Unauthenticated, "signature is already expired")
	}
	return nil
}

// Sign makes the signature that opens one path for one operation: path and
// username exactly as in the query, expires in Unix seconds or nil for never.
func Sign(op files.Op, path, username, token string, expires *int64) string {
	parts := []string{path, string(op), username, token}
	if expires != nil {
		parts = append(parts, strconv.FormatInt(*expires, 10))
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, ":")))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// exposed are the answer headers that a browser may read.
const exposed = "Connect-Content-Encoding, Connect-Accept-Encoding, Grpc-Status, Grpc-Message, " +
	"Grpc-Status-Details-Bin, Content-Encoding, Location, Cache-Control, X-Content-Type-Options"

// cors lets any web page call; the token is what protects.
func cors(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		if r.Header.Get("Origin") == "" {
			next.ServeHTTP(w, r)
			return
		}
		h.Set("Access-Control-Allow-Origin", "*")
		if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
			h.Set("Access-Control-Expose-Headers", exposed)
			next.ServeHTTP(w, r)
			return
		}
		h.Set("Vary", "Access-Control-Request-Method, Access-Control-Request-Headers")
		h.Set("Access-Control-Allow-Methods", "HEAD, GET, POST, PUT, PATCH, DELETE")
		if wanted := r.Header.Get("Access-Control-Request-Headers"); wanted != "" {
			h.Set("Access-Control-Allow-Headers", wanted)
		}
		h.Set("Access-Control-Max-Age", "7200")
		w.WriteHeader(http.StatusNoContent)
	})
}

// timeoutZero makes a Connect timeout of 0 mean none, as the protocol's clients expect.
func timeoutZero(next http.Handler) http.Handler {
	const header = "Connect-Timeout-Ms"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(header) == "0" {
			r.Header.Del(header)
		}
		next.ServeHTTP(w, r)
	})
}

// known answers paths and methods that nobody serves in the protocol's own form.
func known(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		files.WriteError(w, http.StatusNotFound, "there is nothing at "+r.Method+" "+r.URL.Path)
	})
}
