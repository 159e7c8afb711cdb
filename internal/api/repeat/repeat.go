// Package repeat makes a request that is sent twice with one key happen once.
package repeat

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"sync"

	"hearth/internal/hearth"
)

// maxRepeats bounds how many idempotency keys are remembered; the oldest goes first.
const maxRepeats = 10_000

// Memory remembers which sandbox an Idempotency-Key made, so that a request
// that is sent twice makes one. It lives as long as the process. It is safe for concurrent use.
type Memory struct {
	mu    sync.Mutex
	known map[Key]*repeat
	order []Key
}

// Key is a team's Idempotency-Key.
type Key struct {
	Team hearth.TeamID
	Key  string
}

// repeat is one keyed request; id and err are set when done is closed.
type repeat struct {
	request [sha256.Size]byte
	done    chan struct{}
	id      hearth.SandboxID
	err     error
}

// New returns an empty memory.
func New() *Memory { return &Memory{known: map[Key]*repeat{}} }

// Once runs create for the first request with the key. Later ones wait for it
// and get the sandbox's ID with first false. A failure is shared with those who
// waited and then forgotten, so that the client may try again.
func (rs *Memory) Once(ctx context.Context, key Key, request any, create func() (hearth.SandboxID, error)) (id hearth.SandboxID, first bool, err error) {
	text, err := json.Marshal(request)
	if err != nil {
		return "", false, err
	}
	sum := sha256.Sum256(text)
	rs.mu.Lock()
	if r, ok := rs.known[key]; ok {
		rs.mu.Unlock()
		if r.request != sum {
			return "", false, hearth.Errorf(hearth.FailedPrecondition, "Idempotency-Key was used before with another request")
		}
		select {
		case <-r.done:
			return r.id, false, r.err
		case <-ctx.Done():
			return "", false, ctx.Err()
		}
	}
	r := &repeat{request: sum, done: make(chan struct{})}
	rs.known[key] = r
	rs.order = append(rs.order, key)
	if len(rs.order) > maxRepeats {
		delete(rs.known, rs.order[0])
		rs.order = rs.order[1:]
	}
	rs.mu.Unlock()

	r.err = hearth.Errorf(hearth.Aborted, "The request with this Idempotency-Key did not finish") // stays if create panics
	defer func() {
		if r.err != nil {
			rs.forget(key, r)
		}
		close(r.done)
	}()
	r.id, r.err = create()
	return r.id, true, r.err
}

// forget removes what key stands for if it still is r.
func (rs *Memory) forget(key Key, r *repeat) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.known[key] == r {
		delete(rs.known, key) // its place in order is dropped when its turn comes
	}
}
