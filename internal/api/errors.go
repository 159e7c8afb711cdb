package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"hearth/internal/gen/rest"
	"hearth/internal/hearth"
)

// statusClientGone is what the log shows when the client did not wait. Nobody receives it.
const statusClientGone = 499

// retryAfter is what 429 and 503 answers tell clients to wait.
const retryAfter = time.Second

// statusOf is the API's error table: one HTTP status for every kind.
//
// Aborted is a lost race that may simply be tried again, so it is a 503: the
// SDKs read a 409 as "it is already so".
func statusOf(k hearth.Kind) int {
	switch k {
	case hearth.InvalidArgument:
		return http.StatusBadRequest
	case hearth.Unauthenticated:
		return http.StatusUnauthorized
	case hearth.PermissionDenied:
		return http.StatusForbidden
	case hearth.NotFound:
		return http.StatusNotFound
	case hearth.AlreadyExists, hearth.FailedPrecondition:
		return http.StatusConflict
	case hearth.ResourceExhausted:
		return http.StatusTooManyRequests
	case hearth.Unimplemented:
		return http.StatusNotImplemented
	case hearth.Unavailable, hearth.Aborted:
		return http.StatusServiceUnavailable
	case hearth.DeadlineExceeded:
		return http.StatusGatewayTimeout
	case hearth.Canceled:
		return statusClientGone
	}
	return http.StatusInternalServerError
}

// errorCode is the machine-readable part of the answers for which E2B has one.
func errorCode(operation string, status int) string {
	creates := operation == "createSandbox" || operation == "createSandboxV2"
	switch {
	case creates && status == http.StatusServiceUnavailable:
		return "sandbox_capacity_unavailable"
	case creates && status == http.StatusGatewayTimeout:
		return "sandbox_placement_timeout"
	case creates && status == http.StatusInternalServerError:
		return "sandbox_create_failed"
	case status == http.StatusInternalServerError:
		return "internal_server_error"
	}
	return ""
}

// kindOf is hearth.KindOf that also knows the context's own errors.
func kindOf(err error) hearth.Kind {
	if e, ok := errors.AsType[*hearth.Error](err); ok && e.Kind != hearth.Internal {
		return e.Kind
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return hearth.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return hearth.Canceled
	}
	return hearth.Internal
}

// messageOf returns what a caller may read of err. Causes stay in the log.
func messageOf(err error, status int, requestID string) string {
	if e, ok := errors.AsType[*hearth.Error](err); ok && e.Msg != "" {
		return e.Msg
	}
	if status == http.StatusGatewayTimeout {
		return "The request took too long"
	}
	if status == statusClientGone {
		return "The request was canceled"
	}
	return "Internal server error (request " + requestID + ")"
}

// fail answers with err and leaves it to the access log.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	rec := recordOf(r.Context())
	rec.err = err
	if rec.wrote() {
		return // too late for another answer
	}
	status := statusOf(kindOf(err))
	body := rest.Error{Code: int32(status), Message: messageOf(err, status, rec.id)}
	if c := errorCode(rec.operation, status); c != "" {
		body.ErrorCode = &c
	}
	switch status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		wait := max(rec.retryAfter, retryAfter)
		w.Header().Set("Retry-After", strconv.Itoa(int((wait+time.Second-1)/time.Second)))
	case http.StatusGatewayTimeout:
		// Newer SDKs repeat 504 on their own; what took too long once must not
		// be started four times.
		w.Header().Set("Should-Retry", "false")
	}
	writeJSON(w, status, body)
}

// badRequest answers an error of the generated decoding, which the check before
// it should have found already.
func (s *server) badRequest(w http.ResponseWriter, r *http.Request, err error) {
	s.fail(w, r, hearth.Wrap(hearth.InvalidArgument, err, "The request does not fit the API's description"))
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil { // plain structs do not fail
		status, body = http.StatusInternalServerError, []byte(`{"code":500,"message":"Internal server error"}`)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client is gone if this fails
}
