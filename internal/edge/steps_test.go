package edge

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/guest"
	"hearth/internal/hearth"
)

func frame(flags byte, msg string) string {
	return string(append([]byte{flags}, binary.BigEndian.AppendUint32(nil, uint32(len(msg)))...)) + msg
}

const (
	startPath = "/process.Process/Start"
	ls        = `{"process":{"cmd":"/bin/bash","args":["-l","-c","ls"]}}`
	data      = `{"event":{"data":{"stdout":"aGk="}}}`
	ended     = `{"event": {"end":{"exited":true}}}`
)

// parts answers with pieces of a body, each sent when the one before is read by the
// client, or when next is closed.
func parts(status int, pieces ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		w.WriteHeader(status)
		for _, p := range pieces {
			io.WriteString(w, p)
			w.(http.Flusher).Flush()
		}
	})
}

// send posts to a sandbox with a history.
func send(t *testing.T, s *httptest.Server, port, path, body string, edit func(*http.Request)) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+path, strings.NewReader(body))
	must(t, err)
	r.Header.Set(SandboxHeader, alpha)
	r.Header.Set(PortHeader, port)
	if strings.HasPrefix(path, startPath) {
		r.Header.Set("Content-Type", "application/connect+json")
	}
	if edit != nil {
		edit(r)
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	must(t, err)
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// TestStepBeforeTheEnd: what the client has seen when the step is taken is all but
// the end, and all of it arrives.
func TestStepBeforeTheEnd(t *testing.T) {
	cell := `{"code":"x = 1\nx"}`
	start := frame(0, `{"event":{"start":{"pid":7}}}`)
	long := frame(0, `{"event":{"data":{"stdout":"`+strings.Repeat("aGk=", 5000)+`"}}}`)
	const binary = "\n\r\n\x02sh\x12\x02-c\x12\x03pwd" // StartRequest, in protobuf
	hi, over := frame(0, "\n\x06\x12\x04\n\x02hi"), frame(0, "\n\x04\x1a\x02\x10\x01")
	for _, tc := range []struct {
		name, port, path, send string
		answer                 []string
		seen                   string // when the step is taken
		label                  string
		kind                   string // of the content; empty: Connect's in JSON
	}{
		{"gRPC", "49983", startPath, frame(0, binary), []string{hi, over}, hi, "pwd", "application/grpc"},
		{"gRPC, typed", "49983", startPath, frame(0, binary), []string{hi, over}, hi, "pwd", "application/grpc+proto; charset=utf-8"},
		{"gRPC-Web", "49983", startPath, frame(0, binary), []string{hi, over, frame(0x80, "grpc-status: 0\r\n")}, hi, "pwd", "application/grpc-web+proto"},
		{"gRPC-Web without an end", "49983", startPath, frame(0, binary), []string{hi, frame(0x80, "grpc-status: 2\r\n")}, hi, "pwd", "application/grpc-web"},
		{"gRPC in JSON", "49983", startPath, frame(0, ls), []string{frame(0, data), frame(0, ended)}, frame(0, data), "ls", "application/grpc+json"},
		{"a command", "49983", startPath, frame(0, ls), []string{start, long, frame(0, data), frame(0, ended), frame(2, "{}")}, start + long + frame(0, data), "ls", ""},
		{"all at once", "49983", startPath, frame(0, ls), []string{start + frame(0, data) + frame(0, ended) + frame(2, "{}")}, start + frame(0, data), "ls", ""},
		{"in small pieces", "49983", startPath, frame(0, ls), strings.Split(frame(0, data)+frame(0, ended)+frame(2, "{}"), ""), frame(0, data), "ls", ""},
		{"no message says the end", "49983", startPath, frame(0, ls), []string{start, frame(2, "{}")}, start, "ls", ""},
		{"compressed", "49983", startPath, frame(0, ls), []string{start, frame(1, ended), frame(2, "{}")}, start + frame(1, ended), "ls", ""},
		{"cut short", "49983", startPath, frame(0, ls), []string{start, "\x00\x00"}, start + "\x00\x00", "ls", ""},
		{"a cell", "49999", "/execute", cell, []string{`{"type":"result"}` + "\n", `{"type":"end_of_execution"}` + "\n"}, `{"type":"result"}` + "\n" + `{"type":"end_of_execution"}` + "\n", "cell x = 1", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			town := newTown()
			town.change(alpha, func(r *Route) { r.History = true })
			for _, port := range []int{guest.Port, guest.CodePort} {
				town.serve(t, alpha, port, parts(200, tc.answer...))
			}
			taken, goOn := make(chan string), make(chan error)
			town.step = func(_ context.Context, id hearth.SandboxID, label string) error {
				taken <- string(id) + " " + label
				return <-goOn
			}
			_, s := town.open(t, Config{})
			resp := send(t, s, tc.port, tc.path, tc.send, func(r *http.Request) {
				if tc.kind != "" {
					r.Header.Set("Content-Type", tc.kind)
				}
			})
			before := make([]byte, len(tc.seen))
			_, err := io.ReadFull(resp.Body, before)
			must(t, err)
			if string(before) != tc.seen {
				t.Errorf("seen %q", before)
			}
			rest := make(chan string)
			go func() {
				raw, err := io.ReadAll(resp.Body)
				if err != nil {
					raw = []byte(err.Error())
				}
				rest <- string(raw)
			}()
			select {
			case got := <-taken:
				if got != alpha+" "+tc.label {
					t.Errorf("step of %q", got)
				}
			case got := <-rest:
				t.Fatalf("the client saw %q before a step was taken", got)
			}
			select {
			case got := <-rest:
				t.Fatalf("the client saw %q before the step was there", got)
			default:
			}
			goOn <- errors.New("whatever becomes of it")
			if got := string(before) + <-rest; got != strings.Join(tc.answer, "") {
				t.Errorf("in all %q", got)
			}
		})
	}
}

// TestNoStep: what is no step costs none.
func TestNoStep(t *testing.T) {
	town := newTown()
	town.change(alpha, func(r *Route) { r.History = true })
	town.serve(t, alpha, guest.Port, parts(200, "x"))
	town.serve(t, alpha, guest.CodePort, parts(400, `{"message":"code is missing"}`))
	town.serve(t, alpha, 3000, parts(200, "x"))
	town.serve(t, beta, guest.Port, parts(200, frame(2, "{}")))
	town.step = func(_ context.Context, id hearth.SandboxID, label string) error {
		t.Errorf("a step of %s: %s", id, label)
		return nil
	}
	_, s := town.open(t, Config{})
	for _, tc := range []struct{ id, method, port, path string }{
		{alpha, "POST", "49983", "/process.Process/List"},
		{alpha, "GET", "49983", startPath},
		{alpha, "POST", "49983", "/files"},
		{alpha, "POST", "49999", "/contexts"},
		{alpha, "POST", "49999", "/execute"}, // refused
		{alpha, "POST", "3000", startPath},
		{beta, "POST", "49983", startPath}, // without a history
	} {
		resp := send(t, s, tc.port, tc.path, "{}", func(r *http.Request) {
			r.Method = tc.method
			r.Header.Set(SandboxHeader, tc.id)
		})
		_, err := io.ReadAll(resp.Body)
		must(t, err)
	}
}

// TestStepTakesTooLong: the client gets its answer when its own time, or ours, is up.
func TestStepTakesTooLong(t *testing.T) {
	for _, tc := range []struct {
		header string
		want   time.Duration
	}{{"", time.Minute}, {"5000", 5*time.Second - slack}, {"100", 0}, {"-1", time.Minute}, {"99999999999999999999", time.Minute}, {"600000", time.Minute}} {
		synctest.Test(t, func(t *testing.T) {
			town := newTown()
			var waited time.Duration
			town.step = func(ctx context.Context, _ hearth.SandboxID, _ string) error {
				began := time.Now()
				<-ctx.Done()
				waited = time.Since(began)
				return ctx.Err()
			}
			e := New(Config{StepTimeout: time.Minute}, Deps{Resolver: town, Dialer: town, Stepper: town})
			r := httptest.NewRequest("POST", startPath, strings.NewReader(frame(0, ls)))
			r.Header.Set("Content-Type", "application/connect+json")
			r.Header.Set("Connect-Timeout-Ms", tc.header)
			st, passed := e.steps(r, target{alpha, guest.Port})
			io.Copy(io.Discard, passed.Body)
			resp := &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(frame(0, ended) + frame(2, "{}")))}
			st.follow(resp)
			if got, err := io.ReadAll(resp.Body); err != nil || string(got) != frame(0, ended)+frame(2, "{}") {
				t.Errorf("%q, %v", got, err)
			}
			if waited != tc.want {
				t.Errorf("with %q it waited for %v, want %v", tc.header, waited, tc.want)
			}
			e.Close()
		})
	}
}

// TestStreamThatBreaks is no step: nobody knows what became of the command.
func TestStreamThatBreaks(t *testing.T) {
	town := newTown()
	town.step = func(context.Context, hearth.SandboxID, string) error {
		t.Error("a step was taken")
		return nil
	}
	e := New(Config{}, Deps{Resolver: town, Dialer: town, Stepper: town})
	defer e.Close()
	r := httptest.NewRequest("POST", startPath, strings.NewReader(frame(0, ls)))
	r.Header.Set("Content-Type", "application/connect+json")
	st, _ := e.steps(r, target{alpha, guest.Port})
	broken := errors.New("connection reset")
	resp := &http.Response{StatusCode: 200, Body: io.NopCloser(io.MultiReader(strings.NewReader(frame(0, data)+"\x00"), iotest{broken}))}
	st.follow(resp)
	if got, err := io.ReadAll(resp.Body); !errors.Is(err, broken) || string(got) != frame(0, data)+"\x00" {
		t.Errorf("%q, %v", got, err)
	}
}

// iotest is a reader that fails.
type iotest struct{ err error }

func (r iotest) Read([]byte) (int, error) { return 0, r.err }

// FuzzTail lets a guest say anything: it arrives as it is, and the step is taken once.
func FuzzTail(f *testing.F) {
	f.Add(frame(0, data)+frame(0, ended)+frame(2, "{}"), 3)
	f.Add("\x02\xff\xff\xff\xff", 1)
	f.Fuzz(func(t *testing.T, answer string, chunk int) {
		taken := 0
		town := newTown()
		town.step = func(context.Context, hearth.SandboxID, string) error { taken++; return nil }
		e := New(Config{}, Deps{Resolver: town, Dialer: town, Stepper: town})
		defer e.Close()
		st := &step{edge: e, kind: "application/connect+json", ctx: t.Context()}
		resp := &http.Response{StatusCode: 200, Body: io.NopCloser(&slow{answer, max(chunk%7, 1)})}
		st.follow(resp)
		got, err := io.ReadAll(resp.Body)
		if err != nil || string(got) != answer || taken != 1 {
			t.Errorf("%q became %q, %v, with %d steps", answer, got, err, taken)
		}
	})
}

// slow reads a few bytes at a time.
type slow struct {
	text  string
	chunk int
}

func (s *slow) Read(p []byte) (int, error) {
	if s.text == "" {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), s.chunk)], s.text)
	s.text = s.text[n:]
	return n, nil
}
