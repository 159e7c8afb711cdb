package idle

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/control/routes"
	"hearth/internal/hearth"
)

// scene is one sandbox that is to be paused after a minute.
type scene struct {
	mu     sync.Mutex
	since  time.Time
	busy   bool
	fails  bool
	pauses []time.Duration // after the beginning
}

func (s *scene) set(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s := &scene{}
		w := Watch{
			Every: time.Second, Now: time.Now, Log: slog.New(slog.DiscardHandler),
			Routes: func() []routes.Route {
				return []routes.Route{{Sandbox: "i1", Idle: time.Minute, Since: began.Add(10 * time.Second)}}
			},
			Unused: func(hearth.SandboxID) (time.Time, bool) {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.since, !s.busy
			},
			Pause: func(_ context.Context, _ hearth.SandboxID, still func() bool) error {
				if !still() {
					t.Error("it is not idle")
				}
				s.mu.Lock()
				defer s.mu.Unlock()
				s.pauses = append(s.pauses, time.Since(began).Truncate(time.Second))
				if s.fails {
					return errors.New("boom")
				}
				s.busy = true // paused: not asked about any more
				return nil
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); w.Run(ctx) }()
		want := func(pauses ...time.Duration) {
			t.Helper()
			synctest.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.pauses) != len(pauses) {
				t.Fatalf("paused at %v, want %v", s.pauses, pauses)
			}
			for i := range pauses {
				if d := s.pauses[i] - pauses[i]; d < 0 || d > time.Second {
					t.Fatalf("paused at %v, want %v", s.pauses, pauses)
				}
			}
		}
		time.Sleep(69 * time.Second)
		want()
		time.Sleep(2 * time.Second) // a minute after its start
		want(70 * time.Second)

		s.set(func() { s.busy, s.since = true, time.Time{} })
		time.Sleep(5 * time.Minute) // somebody waits for a command
		want(70 * time.Second)
		s.set(func() { s.busy, s.since, s.fails = false, time.Now(), true })
		at := time.Since(began)
		time.Sleep(59 * time.Second)
		want(70 * time.Second)
		time.Sleep(2*time.Minute + 5*time.Second)
		want(70*time.Second, at+time.Minute, at+2*time.Minute, at+3*time.Minute) // tried again, not at every look
		cancel()
		<-done
	})
}
