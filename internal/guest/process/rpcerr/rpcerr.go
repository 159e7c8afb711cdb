// Package rpcerr turns Hearth's errors into Connect's: the guest daemon's one
// table from a Kind to what crosses the wire.
package rpcerr

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"hearth/internal/hearth"
)

// From returns err as a *connect.Error. An error that already is one, and nil,
// stay; one of no known class becomes internal. The text is the whole chain: it
// speaks of the caller's own sandbox, so there is nothing to hide in it.
func From(err error) error {
	var ce *connect.Error
	switch {
	case err == nil || errors.As(err, &ce):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, err)
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, err)
	}
	var code connect.Code
	if code.UnmarshalText([]byte(hearth.KindOf(err))) != nil {
		code = connect.CodeInternal
	}
	if he, ok := errors.AsType[*hearth.Error](err); ok && he.Kind == hearth.Unauthenticated {
		return connect.NewError(code, errors.New(he.Msg)) // the exact text is part of the protocol
	}
	return connect.NewError(code, err)
}
