package api

import (
	"context"
	"net"
	"net/http"
	"strings"

	"hearth/internal/hearth"
)

// caller is who sent a request.
type caller struct {
	team *hearth.Team
	key  string
}

type callerKey struct{}

// callerOf returns who sent the request; guard has put it there for every
// operation that asks for a key.
func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	if c.team == nil {
		c.team = &hearth.Team{}
	}
	return c
}

func teamOf(ctx context.Context) hearth.TeamID { return callerOf(ctx).team.ID }

// authenticate finds the caller by its API key.
func (s *server) authenticate(r *http.Request) (caller, error) {
	from := clientAddress(r)
	if s.throttle != nil {
		if wait := s.throttle.Wait(from); wait > 0 {
			recordOf(r.Context()).retryAfter = wait
			return caller{}, hearth.Errorf(hearth.ResourceExhausted, "Rate limit exceeded")
		}
	}
	key := presentedKey(r.Header)
	if key == "" {
		return caller{}, hearth.Errorf(hearth.Unauthenticated, "API key is missing: send it in the header X-API-Key")
	}
	team, err := s.keys.Team(r.Context(), key)
	switch kind := kindOf(err); {
	case err == nil:
		return caller{team: team, key: key}, nil
	case kind == hearth.NotFound || kind == hearth.Unauthenticated || kind == hearth.InvalidArgument:
		if s.throttle != nil {
			s.throttle.Failed(from)
		}
		return caller{}, hearth.Wrap(hearth.Unauthenticated, err, "API key is invalid")
	}
	return caller{}, err
}

// presentedKey returns the key of a request. The command line's login sends it
// as a bearer token.
func presentedKey(h http.Header) string {
	if key := h.Get("X-API-Key"); key != "" {
		return key
	}
	scheme, token, _ := strings.Cut(h.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(token)
	}
	return ""
}

// clientAddress is the address whose wrong keys are counted together: the
// connection's, as headers are the client's to choose.
func clientAddress(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
