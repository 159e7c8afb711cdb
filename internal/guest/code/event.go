package code

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// Events are the lines of the answer to /execute.

func keepalive() any { return map[string]string{"type": "keepalive"} }

func endEvent() any { return map[string]string{"type": "end_of_execution"} }

func countEvent(n int64) any {
	return map[string]any{"type": "number_of_executions", "execution_count": n}
}

func streamEvent(name, text string) any {
	stamp := time.Now().UTC().Format("2006-01-02T15:04:05.000000+00:00")
	return map[string]any{"type": name, "text": text, "timestamp": stamp}
}

func errorEvent(name, value, trace string) any {
	return map[string]any{"type": "error", "name": name, "value": value, "traceback": trace}
}

// resultEvent names the representations of a result as the SDKs know them; all
// others go under "extra" by their MIME types.
func resultEvent(data map[string]json.RawMessage, main bool) any {
	event := map[string]any{"type": "result", "is_main_result": main}
	extra := map[string]json.RawMessage{}
	for mime, value := range data {
		field, ok := resultField(mime)
		switch {
		case bytes.Equal(bytes.TrimSpace(value), []byte("null")):
		case !ok:
			extra[mime] = value
		case field == "text":
			event[field] = unquoted(value)
		default:
			event[field] = value
		}
	}
	if len(extra) > 0 {
		event["extra"] = extra
	}
	return event
}

func resultField(mime string) (string, bool) {
	switch mime {
	case "text/plain":
		return "text", true
	case "text/html":
		return "html", true
	case "text/markdown":
		return "markdown", true
	case "image/svg+xml":
		return "svg", true
	case "image/png":
		return "png", true
	case "image/jpeg":
		return "jpeg", true
	case "application/pdf":
		return "pdf", true
	case "text/latex":
		return "latex", true
	case "application/json":
		return "json", true
	case "application/javascript":
		return "javascript", true
	case "e2b/data":
		return "data", true
	case "e2b/chart":
		return "chart", true
	}
	return "", false
}

// unquoted takes one pair of equal quotes off a text: strings are shown as they
// are, not as Python writes them.
func unquoted(raw json.RawMessage) any {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return raw
	}
	if n := len(s); n >= 2 && (s[0] == '\'' || s[0] == '"') && s[n-1] == s[0] {
		return s[1 : n-1]
	}
	return s
}

// stream writes events to an HTTP answer, one JSON object a line, each flushed.
type stream struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func newStream(w http.ResponseWriter) *stream {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	return &stream{w: w, rc: http.NewResponseController(w)}
}

func (s *stream) emit(event any) error {
	b, err := json.Marshal(event)
	if err != nil { // a kernel's own JSON that is none
		b, _ = json.Marshal(streamEvent("stderr", "A result was dropped: it is not valid JSON.\n"))
	}
	if _, err := s.w.Write(append(ascii(b), '\n')); err != nil {
		return err
	}
	return s.rc.Flush()
}

// ascii escapes all that is not ASCII in a JSON text. Clients that decode each
// chunk of the answer by itself would break characters that two chunks share.
func ascii(b []byte) []byte {
	n := 0
	for n < len(b) && b[n] < utf8.RuneSelf {
		n++
	}
	if n == len(b) {
		return b
	}
	var out strings.Builder
	out.Grow(len(b) + len(b)/2)
	out.Write(b[:n])
	for b = b[n:]; len(b) > 0; {
		r, size := utf8.DecodeRune(b)
		switch {
		case r < utf8.RuneSelf:
			out.WriteByte(b[0])
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
		b = b[size:]
	}
	return []byte(out.String())
}
