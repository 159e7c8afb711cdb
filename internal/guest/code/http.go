package code

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"

	"hearth/internal/hearth"
)

// Limits of a request.
const (
	maxBody = 16 << 20 // bytes
	maxPath = 4096     // bytes in a cwd
	maxVars = 4096     // variables for one execution
	maxText = 200      // bytes of a caller's text repeated in an error
)

// Handler serves port 49999: /health, /execute and /contexts. It allows every
// origin; access is the edge's business.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", s.getHealth)
	mux.HandleFunc("POST /execute", s.postExecute)
	mux.HandleFunc("GET /contexts", s.getContexts)
	mux.HandleFunc("POST /contexts", s.postContexts)
	mux.HandleFunc("POST /contexts/{id}/restart", s.postRestart)
	mux.HandleFunc("DELETE /contexts/{id}", s.deleteContext)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		if r.Method == http.MethodOptions {
			w.Header().Set("Access-Control-Allow-Methods", "*")
			w.Header().Set("Access-Control-Allow-Headers", "*")
			w.Header().Set("Access-Control-Max-Age", "7200")
			w.WriteHeader(http.StatusNoContent)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (s *Service) getHealth(w http.ResponseWriter, _ *http.Request) {
	if err := s.Health(); err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	reply(w, "OK")
}

// executeRequest is the body of POST /execute.
type executeRequest struct {
	Code      *string           `json:"code"`
	ContextID string            `json:"context_id"`
	Language  string            `json:"language"`
	Env       map[string]string `json:"env_vars"`
}

func (s *Service) postExecute(w http.ResponseWriter, r *http.Request) {
	var req executeRequest
	if err := decode(w, r, &req); err != nil {
		fail(w, err)
		return
	}
	if err := req.validate(); err != nil {
		fail(w, err)
		return
	}
	e, err := s.choose(req)
	if err != nil {
		fail(w, err)
		return
	}
	e.execute(r.Context(), *req.Code, req.Env, newStream(w))
}

func (q executeRequest) validate() error {
	switch {
	case q.Code == nil:
		return hearth.Errorf(hearth.InvalidArgument, "code is missing")
	case q.ContextID != "" && q.Language != "":
		return hearth.Errorf(hearth.InvalidArgument, "Only one of context_id or language can be provided")
	case len(q.Env) > maxVars:
		return hearth.Errorf(hearth.InvalidArgument, "env_vars has %d entries: the limit is %d", len(q.Env), maxVars)
	}
	for name, value := range q.Env {
		if !validName(name) {
			return hearth.Errorf(hearth.InvalidArgument, "env_vars: %q is not the name of a variable", clip(name))
		}
		if strings.ContainsRune(value, 0) {
			return hearth.Errorf(hearth.InvalidArgument, "env_vars: the value of %q contains NUL", clip(name))
		}
	}
	return nil
}

// validName is what a POSIX shell can export.
func validName(name string) bool {
	if name == "" || '0' <= name[0] && name[0] <= '9' {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return r != '_' && !('a' <= r && r <= 'z') && !('A' <= r && r <= 'Z') && !('0' <= r && r <= '9')
	})
}

// choose finds the context of a request.
func (s *Service) choose(q executeRequest) (*executor, error) {
	if q.ContextID != "" && q.ContextID != "default" {
		return s.find(q.ContextID)
	}
	return s.byLanguage(q.Language)
}

// contextBody is a context on the wire.
type contextBody struct {
	ID       string `json:"id"`
	Language string `json:"language"`
	Cwd      string `json:"cwd"`
}

func (e *executor) body() contextBody { return contextBody{e.id, e.language, e.cwd} }

func (s *Service) getContexts(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	list := make([]contextBody, 0, len(s.contexts))
	for _, e := range s.contexts {
		list = append(list, e.body())
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b contextBody) int { return strings.Compare(a.ID, b.ID) })
	reply(w, list)
}

func (s *Service) postContexts(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Language string `json:"language"`
		Cwd      string `json:"cwd"`
	}
	if err := decode(w, r, &req); err != nil {
		fail(w, err)
		return
	}
	cwd, err := s.directory(req.Cwd)
	if err != nil {
		fail(w, err)
		return
	}
	e, err := s.create(req.Language, cwd)
	if err != nil {
		fail(w, err)
		return
	}
	reply(w, e.body())
}

// directory resolves a cwd against the home directory.
func (s *Service) directory(cwd string) (string, error) {
	switch {
	case cwd == "":
		return s.opts.Home, nil
	case len(cwd) > maxPath:
		return "", hearth.Errorf(hearth.InvalidArgument, "cwd is longer than %d bytes", maxPath)
	case strings.ContainsRune(cwd, 0):
		return "", hearth.Errorf(hearth.InvalidArgument, "cwd contains NUL")
	case cwd == "~" || strings.HasPrefix(cwd, "~/"):
		return filepath.Join(s.opts.Home, cwd[1:]), nil
	case !filepath.IsAbs(cwd):
		return filepath.Join(s.opts.Home, cwd), nil
	}
	return cwd, nil
}

func (s *Service) postRestart(w http.ResponseWriter, r *http.Request) {
	e, err := s.named(r.PathValue("id"))
	if err == nil {
		err = e.restart(r.Context())
	}
	if err != nil {
		fail(w, err)
		return
	}
	reply(w, nil)
}

func (s *Service) deleteContext(w http.ResponseWriter, r *http.Request) {
	e, err := s.named(r.PathValue("id"))
	if err == nil && !s.forget(e) {
		_, err = s.find(e.id)
	}
	if err != nil {
		fail(w, err)
		return
	}
	reply(w, nil)
}

// named is find for paths, where the default context has its name as well.
func (s *Service) named(id string) (*executor, error) {
	if id == "default" {
		return s.byLanguage(python)
	}
	return s.find(id)
}

func decode(w http.ResponseWriter, r *http.Request, into any) error {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return hearth.Errorf(hearth.InvalidArgument, "the body is larger than %d bytes", maxBody)
	}
	if err != nil {
		return hearth.Wrap(hearth.InvalidArgument, err, "the body could not be read")
	}
	if len(strings.TrimSpace(string(b))) == 0 {
		b = []byte("{}")
	}
	err = json.Unmarshal(b, into)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && wrong.Field != "" {
		return hearth.Errorf(hearth.InvalidArgument, "%s must not be a JSON %s", wrong.Field, wrong.Value)
	}
	if err != nil {
		return hearth.Wrap(hearth.InvalidArgument, err, "the body is not a JSON object")
	}
	return nil
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// fail answers with plain text, as clients of this port expect.
func fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch hearth.KindOf(err) {
	case hearth.InvalidArgument:
		status = http.StatusBadRequest
	case hearth.NotFound:
		status = http.StatusNotFound
	}
	refuse(w, status, err)
}

func refuse(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, message0(err))
}

// clip shortens what a caller sent before it is repeated to him.
func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

func listed(specs map[string]kernelSpec) string {
	return strings.Join(slices.Sorted(maps.Keys(specs)), ", ")
}
