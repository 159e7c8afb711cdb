package hearth

import (
	"errors"
	"fmt"
)

// Kind is the class of an error. The values are the RPC field's sixteen codes,
// so a Kind crosses REST, Connect and the CLI without loss.
type Kind string

// The kinds.
const (
	Canceled           Kind = "canceled"
	InvalidArgument    Kind = "invalid_argument"
	DeadlineExceeded   Kind = "deadline_exceeded"
	NotFound           Kind = "not_found"
	AlreadyExists      Kind = "already_exists"
	PermissionDenied   Kind = "permission_denied"
	Unauthenticated    Kind = "unauthenticated"
	ResourceExhausted  Kind = "resource_exhausted"
	FailedPrecondition Kind = "failed_precondition"
	Aborted            Kind = "aborted" // lost a compare-and-swap; retry
	Unimplemented      Kind = "unimplemented"
	Unavailable        Kind = "unavailable" // retry with backoff
	Internal           Kind = "internal"
)

// Error is the only error type with meaning across package borders.
// Msg is safe to show to a caller; Err is for logs and errors.Is.
type Error struct {
	Kind Kind
	Msg  string
	Err  error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Msg
	}
	return e.Msg + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf returns an Error whose message a caller may see.
func Errorf(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Msg: fmt.Sprintf(format, args...)}
}

// Wrap is Errorf with a cause, which is logged and unwrapped but never shown.
func Wrap(kind Kind, cause error, format string, args ...any) error {
	return &Error{Kind: kind, Msg: fmt.Sprintf(format, args...), Err: cause}
}

// KindOf returns the kind of the outermost *Error in err's chain, else Internal.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// Shown is the part of an error that a caller may see: the message of the outermost
// *Error in its chain.
func Shown(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Msg
	}
	return "internal error"
}
