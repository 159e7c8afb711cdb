package edge

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"hearth/internal/edge/label"
	"hearth/internal/guest"
	"hearth/internal/hearth"
)

// This file lets sandboxes with a history take a step after each command, terminal
// and cell: the answer goes through as it comes, but the client does not see its end
// before the step is there. So the step holds all that the command did and nothing
// of what the client does next.
//
// What the edge does not see the end of is no step: a command whose client went
// away before it ended, files that were uploaded, what runs in the background. It
// is in the next step.

// Stepper keeps what a sandbox with a history is. It returns when that is done or
// cannot be done, or when ctx ends; then it goes on all the same.
type Stepper interface {
	Step(ctx context.Context, id hearth.SandboxID, label string) error
}

// Bounds of what is looked at.
const (
	maxSample = 16 << 10 // bytes of a request, to say what it runs
	maxEnd    = 1 << 10  // bytes of the message that says that a process has ended
	peek      = 4 << 10  // bytes of an answer that are read ahead
	slack     = 300 * time.Millisecond
)

// step is a request that is one, on its way.
type step struct {
	edge  *Edge
	id    hearth.SandboxID
	cell  bool
	kind  string // Content-Type
	ctx   context.Context
	until time.Time // when the client gives up; zero: not known
	body  sample
}

// steps returns the step that a request to a sandbox with a history is, and the
// request to pass on; nil if it is none.
func (e *Edge) steps(r *http.Request, t target) (*step, *http.Request) {
	cell := t.port == guest.CodePort && r.URL.Path == "/execute"
	if e.deps.Stepper == nil || r.Method != http.MethodPost || !cell && (t.port != guest.Port || r.URL.Path != "/process.Process/Start") {
		return nil, r
	}
	s := &step{edge: e, id: t.id, cell: cell, kind: r.Header.Get("Content-Type"), ctx: r.Context()}
	if ms, err := strconv.ParseInt(r.Header.Get("Connect-Timeout-Ms"), 10, 64); err == nil && ms > 0 && ms < 1<<40 {
		s.until = time.Now().Add(time.Duration(ms)*time.Millisecond - slack)
	}
	s.body.ReadCloser = r.Body
	passed := *r
	passed.Body = &s.body
	return s, &passed
}

// follow makes an answer end only when the step is there.
func (s *step) follow(resp *http.Response) {
	if resp.StatusCode != http.StatusOK {
		return // nothing ran
	}
	t := &tail{ReadCloser: resp.Body, step: s}
	if !s.cell && label.Framed(s.kind) {
		t.frames = bufio.NewReaderSize(resp.Body, peek)
	}
	resp.Body = t
}

// take takes the step. Whatever becomes of it, the client's command is as it was.
func (s *step) take() {
	until := time.Now().Add(s.edge.cfg.StepTimeout)
	if !s.until.IsZero() && s.until.Before(until) {
		until = s.until
	}
	ctx, cancel := context.WithDeadline(s.ctx, until)
	defer cancel()
	what := label.Cell
	if !s.cell {
		what = func(body []byte) string { return label.Command(s.kind, body) }
	}
	err := s.edge.deps.Stepper.Step(ctx, s.id, what(s.body.taken()))
	if err != nil { // whoever takes steps says why
		s.edge.deps.Log.Debug("a command ended without its step", "sandbox", s.id, "error", err)
	}
}

// sample is the body of a request whose beginning is remembered.
type sample struct {
	io.ReadCloser
	mu    sync.Mutex
	start []byte
}

// Read implements io.Reader.
func (s *sample) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.start = append(s.start, p[:min(n, maxSample-len(s.start))]...)
	return n, err
}

func (s *sample) taken() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.start
}

// tail is the body of an answer that does not end before its step is taken.
type tail struct {
	io.ReadCloser
	step   *step
	frames *bufio.Reader // of a Connect or gRPC stream; else nil
	left   int64         // bytes of the message under way
	over   bool          // the step was taken
}

// Read implements io.Reader.
func (t *tail) Read(p []byte) (n int, err error) {
	if t.frames == nil {
		n, err = t.ReadCloser.Read(p)
	} else {
		if t.left == 0 && !t.over {
			t.look()
		}
		if t.left > 0 {
			p = p[:min(int64(len(p)), t.left)]
		}
		n, err = t.frames.Read(p)
		t.left -= min(int64(n), t.left)
	}
	switch {
	case !errors.Is(err, io.EOF):
		return n, err // more to come, or a stream that broke off: the sandbox may be gone
	case n > 0:
		return n, nil
	}
	t.end()
	return 0, err
}

// look reads the head of the next message, and ends the stream before the one that
// says that the process or the stream has ended. What is no message goes through.
func (t *tail) look() {
	head, _ := t.frames.Peek(label.Header)
	flags, size, ok := label.Frame(head)
	if !ok {
		return
	}
	t.left = label.Header + size
	if flags&(label.EndStream|label.Trailers) == 0 {
		if flags&label.Compressed != 0 || size > maxEnd {
			return
		}
		msg, err := t.frames.Peek(label.Header + int(size))
		if err != nil || !label.Ends(t.step.kind, msg[label.Header:]) {
			return
		}
	}
	t.end()
}

func (t *tail) end() {
	if !t.over {
		t.over = true
		t.step.take()
	}
}
