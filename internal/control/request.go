package control

import "hearth/internal/control/wish"

// CreateRequest is everything a caller may ask of a new sandbox.
type CreateRequest = wish.Create
