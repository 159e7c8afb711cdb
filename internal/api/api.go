// Package api is the public REST API, as the official E2B clients speak it.
//
// spec/openapi.yaml describes every operation. A request passes, in this order:
// the access log, CORS, routing on the escaped path, the time limit, the key, the
// check against the description, the generated decoding, and its handler. What
// the description does not name never reaches a handler, so the limits that a
// caller can meet stand in one document.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"

	"hearth/internal/api/describe"
	"hearth/internal/api/repeat"
	"hearth/internal/gen/rest"
	"hearth/internal/hearth"
	"hearth/spec"
)

// server implements the generated rest.StrictServerInterface.
type server struct {
	sandboxes   sandboxes
	templates   templates
	builds      builds
	tokens      tokens
	keys        keys
	throttle    throttle
	parcels     parcels
	differences differences
	ready       func(context.Context) error
	domain      string
	log         *slog.Logger
	document    *describe.Document
	repeats     *repeat.Memory
}

var _ rest.StrictServerInterface = (*server)(nil)

// New returns the handler of the whole API. It fails when a dependency is
// missing or when the description that was built in does not parse.
func New(d Deps) (http.Handler, error) {
	if d.Sandboxes == nil || d.Templates == nil || d.Tokens == nil || d.Keys == nil || d.Log == nil {
		return nil, errors.New("api: Sandboxes, Templates, Tokens, Keys and Log are required")
	}
	doc, err := describe.Parse(spec.OpenAPI())
	if err != nil {
		return nil, fmt.Errorf("api: description: %w", err)
	}
	s := &server{
		sandboxes: d.Sandboxes, templates: d.Templates, builds: d.Builds, tokens: d.Tokens,
		keys: d.Keys, throttle: d.Throttle, parcels: d.Parcels, differences: d.Differences, ready: d.Ready, domain: d.Domain, log: d.Log,
		document: doc, repeats: repeat.New(),
	}
	return s.observe(cors(escapedPath(s.router()))), nil
}

func (s *server) router() http.Handler {
	mux := chi.NewRouter()
	mux.NotFound(func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, hearth.Errorf(hearth.NotFound, "This server has no %s %s", r.Method, shown(r.URL.RawPath)))
	})
	mux.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		var allowed []string
		for _, m := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
			if mux.Match(chi.NewRouteContext(), m, r.URL.RawPath) {
				allowed = append(allowed, m)
			}
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		msg := fmt.Sprintf("%s is not allowed on %s, which takes %s", r.Method, shown(r.URL.RawPath), strings.Join(allowed, ", "))
		recordOf(r.Context()).err = errors.New(msg)
		writeJSON(w, http.StatusMethodNotAllowed, rest.Error{Code: http.StatusMethodNotAllowed, Message: msg})
	})
	mux.Group(func(r chi.Router) {
		r.Use(s.guard)
		strict := rest.NewStrictHandlerWithOptions(s, nil, rest.StrictHTTPServerOptions{
			RequestErrorHandlerFunc:  s.badRequest,
			ResponseErrorHandlerFunc: s.fail,
		})
		rest.HandlerWithOptions(strict, rest.ChiServerOptions{BaseRouter: r, ErrorHandlerFunc: s.badRequest})
	})
	return mux
}

// guard lets through requests that carry a key and fit the description.
func (s *server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := recordOf(r.Context())
		rec.route = chi.RouteContext(r.Context()).RoutePattern()
		op := s.document.Operation(r.Method, rec.route)
		if op == nil {
			s.fail(w, r, fmt.Errorf("no description of %s %s", r.Method, rec.route))
			return
		}
		rec.operation = op.ID
		ctx, cancel := context.WithTimeout(r.Context(), op.Ceiling())
		defer cancel()
		r = r.WithContext(ctx)
		if !op.Open {
			c, err := s.authenticate(r)
			if err != nil {
				s.fail(w, r, err)
				return
			}
			rec.team = c.team.ID
			r = r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
		}
		if err := op.Check(w, r); err != nil {
			s.fail(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// shown shortens what a client sent for use in a message.
func shown(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// Health says whether the server takes work.
func (s *server) Health(ctx context.Context, _ rest.HealthRequestObject) (rest.HealthResponseObject, error) {
	if s.ready != nil {
		if err := s.ready(ctx); err != nil {
			return nil, hearth.Wrap(hearth.Unavailable, err, "The server takes no work now")
		}
	}
	return rest.Health204Response{}, nil
}

// ListTeams returns the caller's team with the key it already has.
func (s *server) ListTeams(ctx context.Context, _ rest.ListTeamsRequestObject) (rest.ListTeamsResponseObject, error) {
	c := callerOf(ctx)
	return rest.ListTeams200JSONResponse{{
		TeamID: string(c.team.ID), Name: c.team.Name, APIKey: c.key, IsDefault: true,
	}}, nil
}
