package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"hearth/client"
)

// TestKilledWhileItFreezes kills the server with SIGKILL while it stops sandboxes for
// snapshots and pauses and lets them go on, one after the other: nothing else happens,
// so that most deaths fall into the middle of that.
func TestKilledWhileItFreezes(t *testing.T) {
	const sandboxes, deaths = 4, 8
	s := newBaseServer(t, "HEARTH_NODE_POOL=0", "HEARTH_NODE_POOL_MAX=0")
	api := s.client(t)
	var all []*counted
	for range sandboxes {
		sb := s.sandbox(t, client.CreateOptions{Timeout: time.Hour})
		_, err := sb.Commands.Start(t.Context(), `n=0; while true; do n=$((n+1)); echo $n > /tmp/count; sleep 0.02; done`, client.RunOptions{})
		must(t, err)
		all = append(all, &counted{id: sb.ID})
	}
	for range deaths {
		ctx, stop := context.WithCancel(t.Context())
		var busy sync.WaitGroup
		for i, c := range all {
			busy.Go(func() { c.freeze(ctx, api, i%2 == 1) })
		}
		select { // at a moment that chance decides
		case <-time.After(time.Duration(100+rand.IntN(400)) * time.Millisecond):
		case <-t.Context().Done():
		}
		pid := s.pid(t)
		must(t, syscall.Kill(pid, syscall.SIGKILL))
		stop()
		busy.Wait()
		eventually(t, "the server is gone", func() bool { return syscall.Kill(pid, 0) != nil })
		s.up(t)
		for _, c := range all {
			c.countsOn(t, api)
		}
	}
}

// counted is a sandbox in which a process counts.
type counted struct {
	id  string
	was int // counted when it was looked at last
}

// freeze takes snapshots of it, or pauses and resumes it, until the server is gone.
func (c *counted) freeze(ctx context.Context, api *client.Client, pauses bool) {
	for ctx.Err() == nil {
		var err error
		if pauses {
			if err = api.Pause(ctx, c.id); err == nil {
				_, err = api.Connect(ctx, c.id, time.Hour)
			}
		} else {
			var snap *client.Snapshot
			if snap, err = api.Snapshot(ctx, c.id, ""); err == nil {
				err = api.DeleteSnapshot(ctx, snap.ID)
			}
		}
		if err != nil {
			return
		}
	}
}

// countsOn wants the same process to be there, and to go on.
func (c *counted) countsOn(t *testing.T, api *client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stalled)
	defer cancel()
	sb, err := api.Connect(ctx, c.id, time.Hour)
	for isConflict(err) && ctx.Err() == nil { // it is being settled after a crash
		<-time.After(20 * time.Millisecond)
		sb, err = api.Connect(ctx, c.id, time.Hour)
	}
	if err != nil {
		t.Fatalf("sandbox %s is lost: %v", c.id, err)
	}
	from := c.was
	for c.was <= from+1 {
		out, err := sb.Files.Read(ctx, "/tmp/count")
		must(t, err)
		n := 0
		_, _ = fmt.Sscan(string(out), &n) // it may be read while it is written
		if n > 0 && n < c.was {
			t.Fatalf("sandbox %s has counted %d before, now %d", c.id, c.was, n)
		}
		c.was = max(c.was, n)
	}
}
