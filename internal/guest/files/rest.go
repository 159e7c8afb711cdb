package files

import (
	"encoding/json"
	"errors"
	"net/http"

	"hearth/internal/hearth"
)

// statusError is an answer whose status no Kind stands for.
type statusError struct {
	status int
	msg    string
}

func (e *statusError) Error() string { return e.msg }

// WriteError answers with the protocol's JSON error.
func WriteError(w http.ResponseWriter, status int, msg string) {
	h := w.Header()
	for _, k := range []string{"Content-Disposition", "Content-Encoding", "Content-Length", "Last-Modified"} {
		h.Del(k)
	}
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"code": status, "message": valid(msg)})
}

// fail answers with what err stands for.
func fail(w http.ResponseWriter, err error) {
	if se, ok := errors.AsType[*statusError](err); ok {
		WriteError(w, se.status, se.msg)
		return
	}
	status := http.StatusInternalServerError
	switch hearth.KindOf(err) {
	case hearth.InvalidArgument, hearth.FailedPrecondition, hearth.PermissionDenied, hearth.AlreadyExists:
		status = http.StatusBadRequest
	case hearth.Unauthenticated:
		status = http.StatusUnauthorized
	case hearth.NotFound:
		status = http.StatusNotFound
	case hearth.ResourceExhausted:
		status = http.StatusInsufficientStorage
	}
	msg := err.Error()
	if he, ok := errors.AsType[*hearth.Error](err); ok && status != http.StatusInternalServerError {
		msg = he.Msg
	}
	WriteError(w, status, msg)
}

// writeJSON answers 200 with v.
func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_ = json.NewEncoder(w).Encode(v)
}
