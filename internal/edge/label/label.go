// Package label reads, of requests that run something in a sandbox, what they run,
// and of answers, whether it has ended. All of it comes from clients and guests:
// whatever it does not understand is nothing to it.
package label

import (
	"encoding/binary"
	"encoding/json"
	"path"
	"strings"
)

// Header is the length of what stands before every message of a Connect or gRPC
// stream: a byte of flags and the length of the message in four, big endian.
const Header = 5

// Flags of a message. A stream's last one has EndStream with Connect, Trailers with
// gRPC-Web; with gRPC there is none.
const (
	Compressed = 1
	EndStream  = 2
	Trailers   = 0x80
)

// Framed reports whether a body of this type is a stream of messages with headers.
// gRPC-Web's text form is none: it is base64.
func Framed(contentType string) bool {
	return strings.HasPrefix(contentType, "application/connect+") ||
		strings.HasPrefix(contentType, "application/grpc") && !strings.HasPrefix(contentType, "application/grpc-web-text")
}

// inJSON reports whether the messages of a stream are in JSON; else they are in
// protobuf's binary form.
func inJSON(contentType string) bool {
	kind, _, _ := strings.Cut(contentType, ";")
	return strings.HasSuffix(strings.TrimSpace(kind), "+json")
}

// Frame reads the header of a message.
func Frame(b []byte) (flags byte, size int64, ok bool) {
	if len(b) < Header {
		return 0, 0, false
	}
	return b[0], int64(binary.BigEndian.Uint32(b[1:Header])), true
}

// start is StartRequest of spec/guest/process.proto, as far as it matters here.
type start struct {
	Process struct {
		Cmd  string   `json:"cmd"`
		Args []string `json:"args"`
	} `json:"process"`
	PTY *struct{} `json:"pty"`
}

// Command says what the beginning of a stream to process.Process/Start runs: the
// line that a shell is given, or the program and its arguments.
func Command(contentType string, body []byte) string {
	flags, size, ok := Frame(body)
	if !ok || flags != 0 {
		return "command"
	}
	msg := body[Header:]
	msg = msg[:min(int64(len(msg)), size)]
	var s start
	if !inJSON(contentType) {
		s.decode(msg)
	} else if json.Unmarshal(msg, &s) != nil {
		return "command"
	}
	line := strings.Join(append([]string{s.Process.Cmd}, s.Process.Args...), " ")
	if n := len(s.Process.Args); n > 1 && shell(s.Process.Cmd) && strings.HasSuffix(s.Process.Args[n-2], "c") {
		line = s.Process.Args[n-1]
	}
	switch {
	case s.PTY != nil:
		return "terminal " + line
	case strings.TrimSpace(line) == "":
		return "command"
	}
	return line
}

func shell(cmd string) bool {
	switch path.Base(cmd) {
	case "sh", "bash", "dash", "zsh":
		return true
	}
	return false
}

// decode reads the message in protobuf's binary form; it may be cut short.
func (s *start) decode(msg []byte) {
	fields(msg, func(number uint64, value []byte) {
		switch number {
		case 1:
			fields(value, func(number uint64, value []byte) {
				switch number {
				case 1:
					s.Process.Cmd = string(value)
				case 2:
					s.Process.Args = append(s.Process.Args, string(value))
				}
			})
		case 2:
			s.PTY = &struct{}{}
		}
	})
}

// Ends reports whether a message of the answer to process.Process/Start says that
// the process has ended.
func Ends(contentType string, msg []byte) bool {
	if !inJSON(contentType) {
		ends := false
		fields(msg, func(number uint64, event []byte) {
			if number == 1 {
				fields(event, func(number uint64, _ []byte) { ends = ends || number == 3 })
			}
		})
		return ends
	}
	var answer struct {
		Event struct {
			End *struct{} `json:"end"`
		} `json:"event"`
	}
	return json.Unmarshal(msg, &answer) == nil && answer.Event.End != nil
}

// Cell says what a request to the code interpreter runs: its first line.
func Cell(body []byte) string {
	var cell struct {
		Code string `json:"code"`
	}
	if json.Unmarshal(body, &cell) != nil {
		return "cell"
	}
	line, _, _ := strings.Cut(strings.TrimSpace(cell.Code), "\n")
	if line == "" {
		return "cell"
	}
	return "cell " + line
}

// fields calls see with the fields of a protobuf message that have a length, until
// it ends or makes no sense. Of a field that is cut short see gets the beginning.
func fields(msg []byte, see func(number uint64, value []byte)) {
	for len(msg) > 0 {
		tag, n := binary.Uvarint(msg)
		if n <= 0 {
			return
		}
		msg = msg[n:]
		switch tag & 7 {
		case 0:
			_, n := binary.Uvarint(msg)
			if n <= 0 {
				return
			}
			msg = msg[n:]
		case 1, 5:
			size := 8
			if tag&7 == 5 {
				size = 4
			}
			if len(msg) < size {
				return
			}
			msg = msg[size:]
		case 2:
			size, n := binary.Uvarint(msg)
			if n <= 0 {
				return
			}
			msg = msg[n:]
			size = min(size, uint64(len(msg)))
			see(tag>>3, msg[:size])
			msg = msg[size:]
		default:
			return
		}
	}
}
