package edge

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"time"

	"hearth/internal/edge/label"
	"hearth/internal/edge/wire"
	"hearth/internal/guest"
	"hearth/internal/hearth"
)

// Bounds of what the lane takes, in bytes.
const (
	plainHead   = 16 << 10 // of a request
	plainBody   = 64 << 10 // likewise; a larger one may have to be sent while the answer comes
	plainAnswer = 64 << 10 // head
	firstRead   = 4 << 10
)

// lateAnswer is how long an answer is waited for whose request could not be sent whole:
// a server may refuse one without reading it.
const lateAnswer = 100 * time.Millisecond

// bodyTime is how long a body may come behind its head and still be sent with it.
const bodyTime = 20 * time.Millisecond

// head reads until the head of a request is there, and returns its size.
func (v *visit) head() (int, outcome) {
	for fresh := true; ; {
		if len(v.in) > 0 && v.stage() == idle {
			v.enter(reading)
		}
		if fresh && len(v.in) > 0 {
			if c := v.in[0]; c < 'A' || c > 'Z' {
				return 0, odd
			}
			n, err := v.req.Parse(v.in)
			switch {
			case err != nil:
				return 0, odd
			case n > 0:
				return n, theirs
			}
		}
		if len(v.in) >= plainHead {
			return 0, odd
		}
		n, err := v.read(firstRead)
		if err != nil && len(v.in) == 0 {
			return 0, over
		}
		if err != nil {
			return 0, odd
		}
		fresh = bytes.IndexByte(v.in[len(v.in)-n:], '\n') >= 0 // else the head cannot have ended
	}
}

// forget drops a request that was served, and memory that only few need.
func (v *visit) forget(whole int) {
	rest := v.in[whole:]
	if cap(v.in) > plainHead {
		v.in = append(make([]byte, 0, max(firstRead, len(rest))), rest...)
		return
	}
	v.in = v.in[:copy(v.in, rest)]
}

// read reads more of the client's bytes, in room for at least so many.
func (v *visit) read(room int) (int, error) {
	if len(v.in) == cap(v.in) {
		v.in = slices.Grow(v.in, room)
	}
	n, err := v.socket.Read(v.in[len(v.in):cap(v.in)])
	v.in = v.in[:len(v.in)+n]
	return n, err
}

// body reads until so many bytes are there. Clients that send head and body apart do
// it at once; who takes his time may want the answer before the body has ended.
func (v *visit) body(whole int) bool {
	if whole <= len(v.in) {
		return true
	}
	_ = v.socket.SetReadDeadline(time.Now().Add(bodyTime)) // of a connection that is gone, Read tells
	defer func() { _ = v.socket.SetReadDeadline(time.Time{}) }()
	if cap(v.in) < whole {
		v.in = append(make([]byte, 0, whole), v.in...) // v.req stays where it is
	}
	for len(v.in) < whole {
		if _, err := v.read(0); err != nil {
			return false
		}
	}
	return true
}

// fields takes out of a request what the edge wants to know, and what the guest must
// not see.
func (v *visit) fields(id, port, token *once) bool {
	for i := range v.req.Fields {
		f := &v.req.Fields[i]
		ok := true
		switch {
		case f.Is("e2b-sandbox-id"):
			ok = id.set(f.Value)
		case f.Is("e2b-sandbox-port"):
			ok = port.set(f.Value)
		case f.Is("e2b-traffic-access-token"):
			ok, f.Gone = token.set(f.Value), true
		case f.Is(controlHeader), f.Is("forwarded"), f.Is("x-forwarded-for"), f.Is("x-forwarded-host"), f.Is("x-forwarded-proto"):
			f.Gone = true
		case f.Is("content-type"):
			ok = !label.Framed(string(f.Value))
		case f.Is("accept"):
			ok = !bytes.Contains(f.Value, []byte("text/event-stream"))
		}
		if !ok {
			return false
		}
	}
	return true
}

// admit finds out where a request wants to go. It says no to all that Edge.ServeHTTP
// has to do more for than to pass it on, or would refuse.
func (v *visit) admit() (Route, bool) {
	var id, port, token once
	if !v.fields(&id, &port, &token) {
		return Route{}, false
	}
	t, ok := v.lane.edge.plainTarget(string(v.req.Host), id.value, port.value)
	if !ok || v.req.Length > plainBody || t.port == guest.Port && !plainPath(v.req.Target) {
		return Route{}, false
	}
	v.port = t.port
	route, err := v.lane.edge.deps.Resolver.Resolve(v.ctx, t.id)
	switch {
	case err != nil, route.State != hearth.Running, route.History,
		route.MaskRequestHost != "" && t.port != guest.Port,
		route.PrivateIngress && t.port != guest.Port && !route.admits(token.value):
		return Route{}, false
	}
	return route, true
}

// once is a field that must not be there twice.
type once struct {
	value string
	seen  bool
}

func (o *once) set(value []byte) (first bool) {
	first, o.value, o.seen = !o.seen, string(value), true
	return first
}

// controlHeader is the name of guest.ControlHeader, as wire compares it.
var controlHeader = strings.ToLower(guest.ControlHeader)

// plainTarget finds out where a request wants to go if its host name or both headers
// say so; Edge.target knows the rest.
func (e *Edge) plainTarget(host, id, port string) (target, bool) {
	if e.ours(host) && hostname(host) != "sandbox."+e.domain {
		t, err := parseHost(host)
		return t, err == nil
	}
	number, err := parsePort(port)
	if err != nil {
		return target{}, false
	}
	sandbox, err := hearth.ParseSandboxID(id)
	return target{sandbox, number}, err == nil
}

// plainPath reports whether a path reads in one way only, and is none of those that
// are reserved.
func plainPath(target []byte) bool {
	path, _, _ := bytes.Cut(target, []byte{'?'})
	if bytes.ContainsAny(path, "%;") || bytes.Contains(path, []byte("//")) || bytes.Contains(path, []byte("/.")) {
		return false
	}
	first, _, _ := strings.Cut(string(path[1:]), "/")
	return !isReserved("/" + strings.ToLower(first))
}

// pass sends a request into the sandbox and its answer back.
func (v *visit) pass(l *life, body []byte) outcome {
	buf := v.lane.edge.small.Get()
	defer v.lane.edge.small.Put(buf)
	request := append(v.req.Append(buf[:0]), body...)
	defer v.link.Store(nil)
	for link := l.links.Take(v.port); ; link = nil {
		kept := link != nil
		if !kept {
			conn, err := l.connect(v.ctx, v.port)
			switch {
			case err != nil && l.ended():
				return theirs // there may be another machine
			case err != nil:
				v.swap(&sent{err: err})
				return theirs
			}
			link = wire.NewLink(v.port, conn)
		}
		v.link.Store(link)
		broken := link.Send(request)
		if broken != nil {
			_ = link.SetReadDeadline(time.Now().Add(lateAnswer)) // of a connection that is gone, Read tells
		}
		behind, err := link.Receive(&v.ans, &v.req, plainAnswer)
		v.ans.Ends = v.ans.Ends || broken != nil
		switch {
		case err == nil:
			return v.answer(l, link, behind)
		case errors.Is(err, wire.ErrOdd):
			v.swap(&sent{link: link})
			return theirs
		}
		_ = link.Close()
		if v.ctx.Err() != nil {
			return over // it was broken off
		}
		if !kept || link.Heard || !v.req.Repeatable() {
			if l.ended() {
				err = errOver
			}
			v.swap(&sent{err: err})
			return theirs
		}
		// the server had closed it; a new one says how it really is
	}
}

// answer passes on the answer whose head was read.
func (v *visit) answer(l *life, link *wire.Link, behind []byte) outcome {
	buffers := v.lane.edge.small
	buf := buffers.Get()
	defer func() { buffers.Put(buf) }()
	body := &v.ans.Body
	n, done, err := body.Scan(behind)
	excess, full := n < len(behind), false
	out := append(v.ans.Append(buf[:0]), behind[:n]...)
	for err == nil {
		if _, err = v.socket.Write(out); err != nil || done {
			break
		}
		if full && buffers != v.lane.edge.bulk {
			buffers.Put(buf)
			buffers = v.lane.edge.bulk
			buf = buffers.Get()
		}
		var m int
		if m, err = link.Read(buf); err == nil {
			n, done, err = body.Scan(buf[:m])
			out, excess, full = buf[:n], n < m, m == len(buf)
		}
	}
	if err == nil && !excess && !v.ans.Ends && v.link.CompareAndSwap(link, nil) { // else it was broken off
		l.links.Give(link)
	} else {
		_ = link.Close()
	}
	if err != nil {
		return over
	}
	return next
}
