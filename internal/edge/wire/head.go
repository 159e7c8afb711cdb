// Package wire reads plain HTTP/1.1 messages as they are most of the time, without
// copying them apart: heads whose lines end as they should, with a body of a known
// length, in chunks, or without one. Whatever else there is, it calls odd, and
// somebody who knows all of HTTP has to look at it.
//
// So it is strict: of two ways to read a message it takes none. RFC 9112 is the
// source of its grammar.
package wire

import (
	"bytes"
	"errors"
	"slices"
)

// ErrOdd says that a message is not plain.
var ErrOdd = errors.New("wire: the message is not plain")

// MaxFields is how many fields a plain head has at most.
const MaxFields = 100

// Field is one field of a head.
type Field struct {
	Name, Value []byte
	Gone        bool // it is not passed on
}

// Is reports whether a field has a name, which is given in lower case.
func (f *Field) Is(name string) bool { return equal(f.Name, name) }

// Head is the head of a message. It lies in the bytes it was read from.
type Head struct {
	First  []byte // the first line, without its end
	Fields []Field
}

// parse reads the head at the beginning of b, and returns how many bytes it has: 0
// if it goes on behind b.
func (h *Head) parse(b []byte) (int, error) {
	h.First, h.Fields = nil, h.Fields[:0]
	at := 0
	for {
		size := bytes.IndexByte(b[at:], '\n')
		if size < 0 {
			return 0, nil
		}
		if size == 0 || b[at+size-1] != '\r' {
			return 0, ErrOdd
		}
		line := b[at : at+size-1]
		at += size + 1
		switch {
		case h.First == nil:
			if len(line) == 0 || !all(line, isVisible) {
				return 0, ErrOdd
			}
			h.First = line
		case len(line) == 0:
			return at, nil
		default:
			f, ok := parseField(line)
			if !ok || len(h.Fields) == MaxFields {
				return 0, ErrOdd
			}
			h.Fields = append(h.Fields, f)
		}
	}
}

func parseField(line []byte) (Field, bool) {
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 || !all(line[:colon], isToken) {
		return Field{}, false
	}
	value := bytes.Trim(line[colon+1:], " \t")
	return Field{Name: line[:colon], Value: value}, all(value, isText)
}

// Append appends the head with the fields that are not gone, the empty line included.
func (h *Head) Append(b []byte) []byte {
	b = append(append(b, h.First...), '\r', '\n')
	for i := range h.Fields {
		if f := &h.Fields[i]; !f.Gone {
			b = append(append(b, f.Name...), ':', ' ')
			b = append(append(b, f.Value...), '\r', '\n')
		}
	}
	return append(b, '\r', '\n')
}

// Request is the head of a request.
type Request struct {
	Head
	Method, Target, Host []byte
	Length               int64 // bytes of the body
}

// methods are those of plain requests. The first few may be sent twice.
var methods = [...]string{"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"}

const repeatable = 3

// Parse reads a request's head at the beginning of b, and returns how many bytes it
// has: 0 if it goes on behind b.
func (r *Request) Parse(b []byte) (int, error) {
	n, err := r.parse(b)
	if n == 0 || err != nil {
		return 0, err
	}
	r.Host, r.Length = nil, -1
	ok := r.firstLine()
	for i := range r.Fields {
		ok = ok && r.field(&r.Fields[i])
	}
	if !ok || r.Host == nil {
		return 0, ErrOdd
	}
	r.Length = max(r.Length, 0)
	return n, nil
}

func (r *Request) firstLine() bool {
	method, rest, _ := bytes.Cut(r.First, space)
	target, version, _ := bytes.Cut(rest, space)
	r.Method, r.Target = method, target
	return r.method() >= 0 && string(version) == "HTTP/1.1" && isPlainTarget(target)
}

// field looks at a field that says something of the request itself.
func (r *Request) field(f *Field) (ok bool) {
	switch {
	case f.Is("host"):
		ok = r.Host == nil && len(f.Value) > 0 && all(f.Value, isHost)
		r.Host = f.Value
		return ok
	case f.Is("content-length"):
		if r.Length >= 0 {
			return false
		}
		r.Length, ok = digits(f.Value)
		return ok
	case f.Is("connection"):
		f.Gone = equal(f.Value, "keep-alive")
		return f.Gone
	}
	return !hopByHop(f) && !f.Is("expect") && !f.Is("http2-settings")
}

// isPlainTarget reports whether a target is a path, perhaps with a query, that
// net/url would write as it stands.
func isPlainTarget(target []byte) bool {
	if len(target) == 0 || target[0] != '/' || !all(target, isTarget) {
		return false
	}
	for {
		at := bytes.IndexByte(target, '%')
		if at < 0 {
			return true
		}
		if target = target[at+1:]; len(target) < 2 || !isHex(target[0]) || !isHex(target[1]) {
			return false
		}
	}
}

func (r *Request) method() int {
	return slices.IndexFunc(methods[:], func(m string) bool { return string(r.Method) == m })
}

// Repeatable reports whether a request may be sent again when it is not known
// whether it arrived.
func (r *Request) Repeatable() bool { return r.method() < repeatable && r.Length == 0 }

// Answer is the head of an answer.
type Answer struct {
	Head
	Body Body
	Ends bool // no further request may follow on its connection
}

// Parse reads the head of the answer to a request at the beginning of b, and returns
// how many bytes it has: 0 if it goes on behind b. An answer for information only
// is odd, and so is one whose body ends with the connection.
func (a *Answer) Parse(b []byte, to *Request) (int, error) {
	n, err := a.parse(b)
	if n == 0 || err != nil {
		return 0, err
	}
	a.Ends, a.Body = false, Body{left: -1}
	status, ok := parseStatus(a.First)
	for i := range a.Fields {
		ok = ok && a.field(&a.Fields[i])
	}
	if !ok || status < 200 || !a.framing(status == 204 || status == 304, equal(to.Method, "head")) {
		return 0, ErrOdd
	}
	return n, nil
}

// framing settles where the body ends. A bare answer has none, and none has that to a
// HEAD, whatever it says of it.
func (a *Answer) framing(bare, head bool) bool {
	length, chunked := a.Body.left >= 0, a.Body.chunked
	switch {
	case bare:
		a.Body = Body{}
		return !length && !chunked
	case head:
		a.Body = Body{}
		return !length || !chunked
	}
	a.Body.left = max(a.Body.left, 0)
	return length != chunked
}

// field looks at a field that says something of the answer itself.
func (a *Answer) field(f *Field) (ok bool) {
	switch {
	case f.Is("content-length"):
		if a.Body.left >= 0 {
			return false
		}
		a.Body.left, ok = digits(f.Value)
		return ok
	case f.Is("transfer-encoding"):
		ok = equal(f.Value, "chunked") && !a.Body.chunked
		a.Body.chunked = true
		return ok
	case f.Is("connection"):
		last := equal(f.Value, "close")
		f.Gone, a.Ends = true, a.Ends || last
		return last || equal(f.Value, "keep-alive")
	case f.Is("keep-alive"):
		f.Gone = true
		return true
	}
	return !hopByHop(f)
}

// parseStatus reads the status of an answer's first line.
func parseStatus(line []byte) (int, bool) {
	const version = "HTTP/1.1 "
	if len(line) < len(version)+3 || string(line[:len(version)]) != version {
		return 0, false
	}
	status, ok := digits(line[len(version) : len(version)+3])
	rest := line[len(version)+3:]
	return int(status), ok && (len(rest) == 0 || rest[0] == ' ')
}

// hopByHop reports whether a field is for the connection alone.
func hopByHop(f *Field) bool {
	for _, name := range [...]string{"transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"} {
		if f.Is(name) {
			return true
		}
	}
	return false
}

var space = []byte{' '}

// digits reads a number that has nothing but digits, and not too many.
func digits(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// equal compares a word with one in lower case.
func equal(word []byte, lower string) bool {
	if len(word) != len(lower) {
		return false
	}
	for i, c := range word {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// Kinds of bytes.
const (
	isToken   = 1 << iota // of a name
	isTarget              // of a target that net/url leaves as it is
	isHost                // of a host name or address with a port
	isVisible             // of a first line
	isText                // of a value
)

var kinds = func() (t [256]uint8) {
	const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	set := func(bytes string, kind uint8) {
		for i := range len(bytes) {
			t[bytes[i]] |= kind
		}
	}
	set(alphanumeric, isToken|isTarget|isHost)
	set("!#$%&'*+-.^_`|~", isToken)
	set("-._~!$&'()*+,;=:@/?%", isTarget)
	set("-._:[]", isHost)
	for c := range t {
		if c >= ' ' && c <= '~' {
			t[c] |= isVisible | isText
		}
		if c == '\t' || c >= 0x80 {
			t[c] |= isText
		}
	}
	return t
}()

func all(b []byte, kind uint8) bool {
	for _, c := range b {
		if kinds[c]&kind == 0 {
			return false
		}
	}
	return true
}
