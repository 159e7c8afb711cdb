package agentclient

import (
	"bytes"
	"strings"
)

// lines cuts output into lines of bounded length.
type lines struct {
	emit func(string)
	rest []byte
}

func (l *lines) add(data []byte) {
	for len(data) > 0 {
		i := bytes.IndexByte(data, '\n')
		room := maxLine - len(l.rest)
		switch {
		case i >= 0 && i <= room:
			l.rest = append(l.rest, data[:i]...)
			l.out()
			data = data[i+1:]
		case len(data) >= room:
			l.rest = append(l.rest, data[:room]...)
			l.out()
			data = data[room:]
		default:
			l.rest = append(l.rest, data...)
			return
		}
	}
}

// flush emits a last line that has no end.
func (l *lines) flush() {
	if len(l.rest) > 0 {
		l.out()
	}
}

func (l *lines) out() {
	l.emit(strings.ToValidUTF8(strings.TrimSuffix(string(l.rest), "\r"), "\uFFFD"))
	l.rest = l.rest[:0]
}
