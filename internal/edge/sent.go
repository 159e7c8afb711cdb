package edge

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptrace"
	"net/textproto"

	"hearth/internal/edge/wire"
)

type visitKey struct{}

// takeSent returns what became of a request that the lane has sent; nil if it has not.
func takeSent(ctx context.Context) *sent {
	if v, ok := ctx.Value(visitKey{}).(*visit); ok {
		return v.swap(nil)
	}
	return nil
}

// sent is what became of a request that is in the sandbox already: an answer that
// has to be read, or an error.
type sent struct {
	link *wire.Link
	err  error
}

// drop gives up an answer. It may be called more than once, and of none.
func (s *sent) drop() {
	if s != nil && s.link != nil {
		_ = s.link.Close()
	}
}

var (
	errSwitched = errors.New("the server changed the protocol without being asked")
	errTooLong  = errors.New("the head of the answer is too long")
)

// answer returns the answer to r. Its connection is not used again.
func (s *sent) answer(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body) // the lane has it all, and has sent it
		_ = r.Body.Close()
	}
	if s.err != nil {
		return nil, s.err
	}
	stop := context.AfterFunc(r.Context(), s.drop)
	head := &bounded{link: s.link, unread: s.link.Unread(), left: maxResponseHeader}
	resp, err := finalResponse(bufio.NewReader(head), r)
	if err != nil {
		stop()
		s.drop()
		if cause := context.Cause(r.Context()); cause != nil {
			return nil, cause
		}
		return nil, err
	}
	head.left = math.MaxInt64
	resp.Body = &sentBody{ReadCloser: resp.Body, end: func() { stop(); s.drop() }}
	return resp, nil
}

// finalResponse reads an answer, and passes on those before it that are for
// information only.
func finalResponse(in *bufio.Reader, r *http.Request) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(in, r)
		switch {
		case err != nil:
			return nil, err
		case resp.StatusCode == http.StatusSwitchingProtocols:
			return nil, errSwitched
		case resp.StatusCode >= 200:
			return resp, nil
		}
		if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.Got1xxResponse != nil {
			if err := trace.Got1xxResponse(resp.StatusCode, textproto.MIMEHeader(resp.Header)); err != nil {
				return nil, err
			}
		}
	}
}

// bounded reads an answer whose head has at most so many bytes.
type bounded struct {
	link   *wire.Link
	unread []byte
	left   int64
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (n int, err error) {
	if b.left <= 0 {
		return 0, errTooLong
	}
	p = p[:min(int64(len(p)), b.left)]
	if n = copy(p, b.unread); n > 0 {
		b.unread = b.unread[n:]
	} else {
		n, err = b.link.Conn.Read(p)
	}
	b.left -= int64(n)
	return n, err
}

// sentBody is the body of an answer.
type sentBody struct {
	io.ReadCloser
	end func()
}

// Close implements io.Closer. What was not read is not waited for.
func (b *sentBody) Close() error {
	b.end()
	return nil
}
