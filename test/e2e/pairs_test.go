package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hearth/client"
)

// both is a sandbox with which two operations are done at once.
type both struct {
	t     *testing.T
	api   *client.Client
	sb    *client.Sandbox
	kept  string // a snapshot of it, the first thing that was done with it
	mu    sync.Mutex
	lines []string // of its file; acknowledged
	n     int
}

// operation is one of the two. effects are those that the other one must not miss.
type operation struct {
	name    string
	do      func(ctx context.Context, b *both) error
	effects effect
}

type effect int

const (
	kills     effect = 1 << iota // the sandbox is gone then
	pauses                       // nothing gets to it until somebody resumes it
	forgets                      // its memory is gone
	rollsBack                    // what was written meanwhile may be gone
)

func operations() []operation {
	return []operation{
		{"write", func(ctx context.Context, b *both) error { return b.write(ctx) }, 0},
		{"pause", func(ctx context.Context, b *both) error { return b.api.Pause(ctx, b.sb.ID) }, pauses},
		{"pause of files", func(ctx context.Context, b *both) error { return b.api.PauseFiles(ctx, b.sb.ID) }, pauses | forgets},
		{"resume", func(ctx context.Context, b *both) error {
			_, err := b.api.Connect(ctx, b.sb.ID, time.Hour)
			return err
		}, 0},
		{"snapshot", func(ctx context.Context, b *both) error {
			snap, err := b.api.Snapshot(ctx, b.sb.ID, "")
			if err != nil {
				return err
			}
			return b.api.DeleteSnapshot(ctx, snap.ID)
		}, 0},
		{"fork", func(ctx context.Context, b *both) error { return b.fork(ctx) }, 0},
		{"rollback", func(ctx context.Context, b *both) error {
			_, err := b.api.Rollback(ctx, b.sb.ID, b.kept)
			return err
		}, rollsBack},
		{"rollback to a step", func(ctx context.Context, b *both) error { return b.back(ctx) }, rollsBack},
		{"diff", func(ctx context.Context, b *both) error { return b.diff(ctx) }, 0},
		{"request", func(ctx context.Context, b *both) error { return b.request(ctx) }, 0},
		{"export", func(ctx context.Context, b *both) error { return b.api.Export(ctx, b.kept, io.Discard) }, 0},
		{"timeout", func(ctx context.Context, b *both) error { return b.api.SetTimeout(ctx, b.sb.ID, time.Hour) }, 0},
		{"kill", func(ctx context.Context, b *both) error { return b.api.Kill(ctx, b.sb.ID) }, kills},
	}
}

// TestEveryPair does every two operations with one sandbox at once, and the same one
// twice: each succeeds, or is told that the sandbox is not there or not in the state
// for it. Afterwards the sandbox is whole, with all that was acknowledged.
func TestEveryPair(t *testing.T) {
	s := newBaseServer(t)
	api := s.client(t)
	var b *both
	ops := operations()
	for i, one := range ops {
		for _, other := range ops[i:] {
			if b == nil {
				b = begin(t, s, api, i%2 == 1)
			}
			if !b.pair(one, other) {
				t.Fatalf("%s and %s at once: see above", one.name, other.name)
			}
			if (one.effects|other.effects)&(kills|forgets) != 0 {
				must(t, b.end())
				b = nil
			}
		}
	}
	if b != nil {
		must(t, b.end())
	}
}

// begin makes a sandbox in whose memory a process counts, perhaps with a history: then
// a write is a step, too, and a request resumes it.
func begin(t *testing.T, s *server, api *client.Client, history bool) *both {
	t.Helper()
	o := client.CreateOptions{Timeout: time.Hour, AutoResume: history}
	if history {
		o.History = -1
	}
	b := &both{t: t, api: api, sb: s.sandbox(t, o)}
	const count = `echo word > /dev/shm/word; n=0; while true; do n=$((n+1)); echo $n > /dev/shm/count; sleep 0.02; done`
	_, err := b.sb.Commands.Start(t.Context(), count, client.RunOptions{})
	must(t, err)
	snap, err := api.Snapshot(t.Context(), b.sb.ID, "")
	must(t, err)
	b.kept = snap.ID
	return b
}

// end removes the sandbox, which may be gone, and its snapshot.
func (b *both) end() error {
	if err := b.sb.Kill(b.t.Context()); err != nil && !client.NotFound(err) {
		return err
	}
	return b.api.DeleteSnapshot(b.t.Context(), b.kept)
}

// write appends a line to a file of the sandbox.
func (b *both) write(ctx context.Context) error {
	b.mu.Lock()
	b.n++
	line := fmt.Sprint("line", b.n)
	b.mu.Unlock()
	res, err := b.sb.Commands.Run(ctx, "echo "+line+" >> log && sync", client.RunOptions{})
	if err == nil && res.ExitCode != 0 {
		err = fmt.Errorf("write: %+v", res)
	}
	if err == nil {
		b.mu.Lock()
		b.lines = append(b.lines, line)
		b.mu.Unlock()
	}
	return err
}

func (b *both) fork(ctx context.Context) error {
	forks, err := b.api.Fork(ctx, b.sb.ID, 1, time.Hour)
	for _, f := range forks {
		if f.Err != nil {
			err = errors.Join(err, f.Err)
			continue
		}
		err = errors.Join(err, f.Sandbox.Kill(ctx))
	}
	return err
}

// back returns to the sandbox's newest step, if it has any.
func (b *both) back(ctx context.Context) error {
	h, err := b.api.History(ctx, b.sb.ID)
	if err != nil || len(h.Steps) == 0 {
		return err
	}
	_, err = b.api.RollbackTo(ctx, b.sb.ID, h.Steps[len(h.Steps)-1].Number)
	return err
}

// diff compares the sandbox as it is now with what it was at first.
func (b *both) diff(ctx context.Context) error {
	snap, err := b.api.Snapshot(ctx, b.sb.ID, "")
	if err != nil {
		return err
	}
	_, err = b.api.Diff(ctx, b.kept, snap.ID, 10)
	return errors.Join(err, b.api.DeleteSnapshot(ctx, snap.ID))
}

// request is traffic: it resumes a sandbox that is paused, where that was asked for. A client must
// get an answer, whatever it is, and no server's error but that the sandbox does not answer.
func (b *both) request(ctx context.Context) error {
	resp, err := b.sb.Request(ctx, http.MethodGet, 49983, "/health", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusInternalServerError {
		return fmt.Errorf("request: %s", resp.Status)
	}
	return nil
}

// pair does both, and looks at what is left.
func (b *both) pair(one, other operation) bool {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), stalled)
	defer cancel()
	effects := one.effects | other.effects
	errs := make([]error, 2)
	var busy sync.WaitGroup
	for i, op := range []operation{one, other} {
		after := time.Duration(rand.IntN(30)) * time.Millisecond // how they meet is for chance to decide
		busy.Go(func() {
			<-time.After(after)
			errs[i] = op.do(ctx, b)
		})
	}
	busy.Wait()
	for i, op := range []operation{one, other} {
		if !allowed(op, errs[i], effects) {
			b.t.Errorf("%s and %s at once: %s ends with %v", one.name, other.name, op.name, errs[i])
		}
	}
	sb, err := b.api.Connect(ctx, b.sb.ID, time.Hour)
	switch {
	case effects&kills != 0:
		if !client.NotFound(err) {
			b.t.Errorf("%s and %s at once: the sandbox is there: %v", one.name, other.name, err)
		}
	case err != nil:
		b.t.Errorf("%s and %s at once: the sandbox is lost: %v", one.name, other.name, err)
	default:
		b.sb = sb
		b.isWhole(ctx, effects)
	}
	return !b.t.Failed()
}

// allowed reports whether an operation ended well, or as one may beside others: the
// sandbox is not there, or not in the state for it. A command may be cut off by what
// ends or pauses the machine it runs in.
func allowed(op operation, err error, effects effect) bool {
	if op.name == "write" && effects != 0 {
		return true
	}
	return err == nil || client.Conflict(err) || client.NotFound(err)
}

// isWhole looks for all that was acknowledged, and for the process that counts.
func (b *both) isWhole(ctx context.Context, effects effect) {
	b.t.Helper()
	out, err := b.sb.Commands.Run(ctx, "touch log; cat log", client.RunOptions{})
	if err != nil {
		b.t.Errorf("the log cannot be read: %v", err)
		return
	}
	got := strings.Fields(out.Stdout)
	for _, line := range b.lines {
		if !slices.Contains(got, line) && effects&rollsBack == 0 {
			b.t.Errorf("%q is lost, the log holds %v", line, got)
		}
	}
	b.lines = got
	if effects&forgets != 0 {
		return
	}
	word, err := b.sb.Files.Read(ctx, "/dev/shm/word")
	if err != nil || string(word) != "word\n" {
		b.t.Errorf("its memory holds %q, %v", word, err)
	}
	var last string
	for n := range 1000 {
		now, err := b.sb.Files.Read(ctx, "/dev/shm/count")
		if err != nil {
			b.t.Errorf("its process: %v", err)
			return
		}
		if n > 0 && len(now) > 0 && string(now) != last {
			return
		}
		last = string(now)
	}
	b.t.Errorf("its process does not count on from %s", last)
}
