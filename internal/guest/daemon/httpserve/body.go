package httpserve

import (
	"errors"
	"io"
	"net/http"
	"sync"
)

// body is a request's body as the handler sees it. The connection stays usable only if it has been
// read to its end.
type body struct {
	mu     sync.Mutex // a handler's other goroutines may read, too
	from   io.Reader
	w      *response
	waits  bool // the client waits for 100 Continue
	ended  bool // read to the end
	failed error
	closed bool // for the handler
	done   bool // close was called
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	if b.waits {
		b.waits = false
		if err := b.w.goOn(); err != nil {
			return 0, err
		}
	}
	return b.read(p)
}

func (b *body) read(p []byte) (int, error) {
	switch {
	case b.ended:
		return 0, io.EOF
	case b.failed != nil:
		return 0, b.failed
	}
	n, err := b.from.Read(p)
	switch {
	case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		b.ended = true
		b.w.conn.in.watch(b.w.cancel)
	case err != nil:
		b.failed = err
	}
	return n, err
}

// Close implements io.Closer. It reads nothing.
func (b *body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}

// close reads what is left, if that is not much and the client did not wait to be asked
// for it. It says whether it came to the end. Nobody reads after it, and it reads only once.
func (b *body) close() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.done || b.waits {
		b.closed = true
		return b.ended
	}
	b.closed, b.done = true, true
	var scratch []byte
	for left := maxDrain; left > 0 && !b.ended && b.failed == nil; {
		if scratch == nil {
			scratch = make([]byte, 4<<10)
		}
		n, _ := b.read(scratch[:min(left, len(scratch))])
		left -= n
	}
	return b.ended
}
