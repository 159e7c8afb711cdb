package store

import (
	"encoding/base64"
	"strings"
	"time"

	"hearth/internal/hearth"
)

// Sizes of a page. A Limit outside 1..MaxPage is brought into it; zero and
// below mean DefaultPage.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

// Size is the number of rows that the page may hold.
func (p Page) Size() int {
	switch {
	case p.Limit <= 0:
		return DefaultPage
	case p.Limit > MaxPage:
		return MaxPage
	}
	return p.Limit
}

// Position is the place in a listing after which the next page begins. Its text
// form is the cursor of a Page: base64url of "time__id", and "__asc" behind it
// for a listing whose oldest row comes first.
type Position struct {
	At  time.Time
	ID  string
	Asc bool
}

const cursorSeparator = "__"

// Cursor is the opaque text of the position.
func (p Position) Cursor() string {
	text := p.At.UTC().Format(time.RFC3339Nano) + cursorSeparator + p.ID
	if p.Asc {
		text += cursorSeparator + "asc"
	}
	return base64.RawURLEncoding.EncodeToString([]byte(text))
}

// BadCursor refuses the cursor of a page.
func BadCursor() error {
	return hearth.Errorf(hearth.InvalidArgument, "Invalid next token: it must be the one that came with the page before, of the same list")
}

// ParseCursor reads a text that Cursor made, with or without base64 padding.
// Anything else is an InvalidArgument.
func ParseCursor(cursor string) (Position, error) {
	bad := func() (Position, error) { return Position{}, BadCursor() }
	if len(cursor) > 300 {
		return bad()
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(cursor, "="))
	if err != nil {
		return bad()
	}
	parts := strings.Split(string(raw), cursorSeparator)
	if len(parts) < 2 || len(parts) > 3 || len(parts) == 3 && parts[2] != "asc" {
		return bad()
	}
	at, err := time.Parse(time.RFC3339Nano, parts[0])
	if err != nil || !at.IsZero() && at.Year() < 1970 || at.Year() > 2261 { // what fits Unix nanoseconds in 64 bits
		return bad()
	}
	id := parts[1]
	if id == "" || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return bad()
	}
	return Position{At: at.UTC(), ID: id, Asc: len(parts) == 3}, nil
}
