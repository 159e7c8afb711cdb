package httpserve

import (
	"bytes"
	"net/http"
)

// refusal is a request that is answered without asking the handler: with its status, and the
// connection's end.
type refusal struct {
	status int
	why    string
}

func (r *refusal) Error() string { return r.why }

func bad(why string) error { return &refusal{http.StatusBadRequest, why} }

// endOfHead returns the length of the head at the beginning of b, its empty line included, or
// 0 if it is not all there. Lines that end without CR count, so that check sees and refuses them.
func endOfHead(b []byte) int {
	for at := 0; ; {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			return 0
		}
		at += i + 1
		if rest := b[at:]; len(rest) > 0 && rest[0] == '\n' {
			return at + 1
		} else if len(rest) > 1 && rest[0] == '\r' && rest[1] == '\n' {
			return at + 2
		}
	}
}

// check refuses a whole head, its empty line included, that programs differ about: where a message ends, whom it
// is for. What is merely malformed http.ReadRequest refuses.
func check(head []byte) error {
	first, rest, _ := bytes.Cut(head, []byte("\r\n"))
	f := framing{v11: bytes.HasSuffix(first, []byte(" HTTP/1.1")), v10: bytes.HasSuffix(first, []byte(" HTTP/1.0"))}
	for line := first; ; {
		if bytes.ContainsAny(line, "\r\n\x00") {
			return bad("a line of the head has a stray CR, LF or NUL")
		}
		if len(rest) == 0 {
			return f.check()
		}
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.ContainsAny(name, " \t"):
			return bad("a header's name has white space in it, or a header goes over two lines")
		case bytes.EqualFold(name, []byte("Host")):
			f.hosts++
		case bytes.EqualFold(name, []byte("Content-Length")):
			f.lengths++
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			f.codings++
			f.unknown = !bytes.EqualFold(bytes.Trim(value, " \t"), []byte("chunked"))
		}
	}
}

// framing is what a head says of where its message ends.
type framing struct {
	v10, v11                bool // of HTTP
	hosts, lengths, codings int  // headers
	unknown                 bool // the transfer coding is not chunked
}

func (f framing) check() error {
	switch {
	case !f.v11 && !f.v10:
		return &refusal{http.StatusHTTPVersionNotSupported, "HTTP/1.1 or HTTP/1.0 is needed"}
	case f.hosts > 1 || f.v11 && f.hosts == 0:
		return bad("one Host header is needed")
	case f.lengths+f.codings > 1:
		return bad("the body's length is given twice")
	case f.codings > 0 && f.v10:
		return bad("Transfer-Encoding needs HTTP/1.1")
	case f.unknown:
		return &refusal{http.StatusNotImplemented, "of transfer codings there is chunked alone"}
	}
	return nil
}
