package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hearth/client"
)

const (
	soakShort   = 40 * time.Second // in every run of the tests; HEARTH_TEST_SOAK asks for more
	soakWorkers = 3
	soakPool    = 2
	soakBlanks  = 2
	soakMost    = 4 // sandboxes of one worker at once
	soakCrash   = 12 * time.Second
	soakPatient = 3 * time.Minute // for a server that comes back
	soakGrowth  = 48              // MiB, and descriptors, that chance may add
)

// TestSoak does random things to sandboxes while the server is killed again and
// again. Whatever a call acknowledged must be so for ever: no sandbox is lost, no
// line of its file, and in the end nothing is left.
func TestSoak(t *testing.T) {
	length := soakShort
	if v := os.Getenv("HEARTH_TEST_SOAK"); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatalf("HEARTH_TEST_SOAK: %v", err)
		}
	}
	s := newBaseServer(t, fmt.Sprintf("HEARTH_NODE_POOL=%d", soakPool), fmt.Sprintf("HEARTH_NODE_POOL_MAX=%d", soakPool), fmt.Sprintf("HEARTH_NODE_BLANKS=%d", soakBlanks))
	k := &soak{t: t, s: s, api: s.client(t), until: time.Now().Add(length), seed: uint64(time.Now().UnixNano())}
	t.Logf("seed %d, %s", k.seed, length)
	var before holdings
	eventually(t, "the pool is full", func() bool {
		before = s.holds(t)
		const ready = soakPool + soakBlanks
		return before.machines == ready && before.processes == ready && before.snapshots == 1 && before.run == ready
	})
	var all sync.WaitGroup
	for i := range soakWorkers {
		all.Go(func() { k.work(uint64(i)) })
	}
	all.Go(k.watch)
	k.crash(length * 2 / 3)
	all.Wait()
	t.Logf("done: %v; %d crashes", k.did, k.crashes)
	k.account()
	k.judge(t)
	if t.Failed() {
		return
	}
	deadline := time.Now().Add(soakPatient)
	for s.holds(t) != before {
		if time.Now().After(deadline) {
			t.Fatalf("the server holds %+v, in the beginning it was %+v", s.holds(t), before)
		}
		<-time.After(100 * time.Millisecond)
	}
}

// soak is one run.
type soak struct {
	t     *testing.T
	s     *server
	api   *client.Client // the address stays over restarts
	until time.Time
	seed  uint64

	epoch   atomic.Int64 // grows when the server is about to be killed, and when it is back: odd while it is away
	crashes int

	mu    sync.Mutex
	calm  []sample // since the last crash
	did   map[string]int
	alive []*subject // of all workers, when they are done
	maybe int        // creates whose answer was lost
}

// subject is one sandbox and what is known of it.
type subject struct {
	id     string
	lines  []string // acknowledged, in order
	unsure string   // a line whose acknowledgement was lost: may be there
	kept   *kept    // the newest snapshot
	either *kept    // a rollback to it got no answer: it may have been made
	gone   bool     // a kill whose answer was lost: may have happened
}

// kept is a snapshot of a subject, and what its file held then.
type kept struct {
	id    string
	lines []string
}

func (k *soak) count(what string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.did == nil {
		k.did = map[string]int{}
	}
	k.did[what]++
}

// crash kills the server at random times and starts it again, for the given time.
func (k *soak) crash(length time.Duration) {
	r := rand.New(rand.NewPCG(k.seed, 99))
	for until := time.Now().Add(length); ; {
		wait := soakCrash/2 + time.Duration(r.Int64N(int64(soakCrash)))
		if time.Now().Add(wait).After(until) {
			return
		}
		<-time.After(wait)
		pid := k.s.pid(k.t)
		k.epoch.Add(1)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			k.t.Errorf("the server died by itself: %v", err)
			return
		}
		k.crashes++
		eventually(k.t, "the server is gone", func() bool { return syscall.Kill(pid, 0) != nil })
		k.s.up(k.t)
		k.mu.Lock()
		k.calm = nil
		k.mu.Unlock()
		k.epoch.Add(1)
	}
}

// work does random things to sandboxes of its own, one after the other.
func (k *soak) work(id uint64) {
	r := rand.New(rand.NewPCG(k.seed, id))
	var own []*subject
	for time.Now().Before(k.until) && !k.t.Failed() {
		if len(own) == 0 || len(own) < soakMost && r.IntN(4) == 0 {
			if sb := k.create(); sb != nil {
				own = append(own, sb)
			}
			continue
		}
		sb := own[r.IntN(len(own))]
		switch n := r.IntN(20); {
		case n < 10:
			k.write(sb, fmt.Sprintf("%d-%d", id, r.Uint32()))
		case n < 13:
			k.pause(sb)
		case n < 15:
			k.read(sb)
		case n < 16:
			k.snapshot(sb)
		case n < 17:
			k.rollback(sb)
		case n < 18 && len(own) < soakMost:
			if made := k.fork(sb); made != nil {
				own = append(own, made)
			}
		default:
			k.kill(sb)
		}
		own = slices.DeleteFunc(own, func(sb *subject) bool { return sb.id == "" })
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.alive = append(k.alive, own...)
}

// lost reports whether nobody knows how a call ended, because the server died
// or was away meanwhile. Any other error is one that must not be.
func (k *soak) lost(ctx context.Context, what string, err error) bool {
	if began, _ := ctx.Value(epochKey{}).(int64); began%2 == 1 || k.epoch.Load() != began {
		k.count(what + " without an answer")
		return true
	}
	k.t.Errorf("%s: %v", what, err)
	return false
}

type epochKey struct{}

// within is the context of one call.
func (k *soak) within() (context.Context, context.CancelFunc) {
	ctx := context.WithValue(context.Background(), epochKey{}, k.epoch.Load())
	return context.WithTimeout(ctx, soakPatient)
}

func (k *soak) create() *subject {
	ctx, cancel := k.within()
	defer cancel()
	sb, err := k.api.Create(ctx, client.CreateOptions{Template: "base", Timeout: time.Hour, AutoPause: true})
	if err != nil {
		var answer *client.Error
		if errors.As(err, &answer) && answer.Status == http.StatusTooManyRequests {
			k.count("create refused")
			return nil
		}
		if k.lost(ctx, "create", err) {
			k.mu.Lock()
			k.maybe++
			k.mu.Unlock()
		}
		return nil
	}
	k.count("create")
	return &subject{id: sb.ID}
}

// connect finds the sandbox, resuming it if it is paused, however long the server
// is away. Nil: the sandbox is gone, as it may be.
func (k *soak) connect(sb *subject) *client.Sandbox {
	for give := time.Now().Add(soakPatient); ; {
		ctx, cancel := k.within()
		conn, err := k.api.Connect(ctx, sb.id, time.Hour)
		known := err == nil || client.NotFound(err) || !isConflict(err) && !k.lost(ctx, "connect", err) // conflict: being settled after a crash
		cancel()
		switch {
		case err == nil:
			return conn
		case client.NotFound(err):
			if !sb.gone {
				k.t.Errorf("sandbox %s is lost", sb.id)
			}
			sb.id = ""
			return nil
		case known:
			return nil
		case time.Now().After(give):
			k.t.Errorf("sandbox %s cannot be reached: %v", sb.id, err)
			return nil
		}
		<-time.After(100 * time.Millisecond)
	}
}

// write appends a line to the sandbox's file and syncs it.
func (k *soak) write(sb *subject, line string) {
	conn := k.connect(sb)
	if conn == nil || !k.check(sb, conn) {
		return
	}
	ctx, cancel := k.within()
	defer cancel()
	res, err := conn.Commands.Run(ctx, "echo "+line+" >> log", client.RunOptions{})
	if err != nil {
		if k.lost(ctx, "write", err) {
			sb.unsure = line
		}
		return
	}
	if res.ExitCode != 0 {
		k.t.Errorf("write: %+v", res)
	}
	sb.lines = append(sb.lines, line)
	k.count("write")
}

func (k *soak) read(sb *subject) {
	if conn := k.connect(sb); conn != nil && k.check(sb, conn) {
		k.count("read")
	}
}

// check compares the sandbox's file with what was acknowledged, and settles a
// line of which nobody knew. False: it could not be read now.
func (k *soak) check(sb *subject, conn *client.Sandbox) bool {
	ctx, cancel := k.within()
	defer cancel()
	res, err := conn.Commands.Run(ctx, "touch log; cat log", client.RunOptions{})
	if err != nil {
		k.lost(ctx, "read", err)
		return false
	}
	got := strings.Fields(res.Stdout)
	if sb.unsure != "" && len(got) == len(sb.lines)+1 && got[len(got)-1] == sb.unsure {
		sb.lines = append(sb.lines, sb.unsure)
	}
	sb.unsure = ""
	if sb.either != nil && !slices.Equal(got, sb.lines) && slices.Equal(got, sb.either.lines) {
		sb.lines = slices.Clone(sb.either.lines)
	}
	sb.either = nil
	if !slices.Equal(got, sb.lines) {
		k.t.Errorf("sandbox %s has the lines %v, acknowledged were %v", sb.id, got, sb.lines)
	}
	return true
}

// snapshot keeps the sandbox as it is; one whose answer was lost goes with the
// sandbox.
func (k *soak) snapshot(sb *subject) {
	conn := k.connect(sb)
	if conn == nil || !k.check(sb, conn) {
		return
	}
	ctx, cancel := k.within()
	defer cancel()
	snap, err := k.api.Snapshot(ctx, sb.id, "")
	if err != nil {
		k.lost(ctx, "snapshot", err)
		return
	}
	k.drop(sb)
	sb.kept = &kept{id: snap.ID, lines: slices.Clone(sb.lines)}
	k.count("snapshot")
}

// drop deletes the sandbox's snapshot.
func (k *soak) drop(sb *subject) {
	for try := 0; sb.kept != nil && try < 100; try++ {
		ctx, cancel := k.within()
		err := k.api.DeleteSnapshot(ctx, sb.kept.id)
		if err == nil || client.NotFound(err) || !k.lost(ctx, "delete", err) {
			sb.kept = nil
		}
		cancel()
	}
}

// rollback takes the sandbox back to its snapshot.
func (k *soak) rollback(sb *subject) {
	if sb.kept == nil {
		return
	}
	conn := k.connect(sb)
	if conn == nil || !k.check(sb, conn) {
		return
	}
	ctx, cancel := k.within()
	defer cancel()
	if _, err := k.api.Rollback(ctx, sb.id, sb.kept.id); err != nil {
		if k.lost(ctx, "rollback", err) {
			sb.either = sb.kept
		}
		return
	}
	sb.lines = slices.Clone(sb.kept.lines)
	k.count("rollback")
}

// fork makes one more sandbox of a sandbox.
func (k *soak) fork(sb *subject) *subject {
	conn := k.connect(sb)
	if conn == nil || !k.check(sb, conn) {
		return nil
	}
	ctx, cancel := k.within()
	defer cancel()
	forks, err := k.api.Fork(ctx, sb.id, 1, time.Hour)
	if err == nil {
		err = forks[0].Err
	}
	if err != nil {
		if k.lost(ctx, "fork", err) {
			k.mu.Lock()
			k.maybe++
			k.mu.Unlock()
		}
		return nil
	}
	k.count("fork")
	return &subject{id: forks[0].Sandbox.ID, lines: slices.Clone(sb.lines)}
}

func (k *soak) pause(sb *subject) {
	ctx, cancel := k.within()
	defer cancel()
	err := k.api.Pause(ctx, sb.id)
	switch {
	case err == nil:
		k.count("pause")
	case client.NotFound(err) && sb.gone:
		sb.id = ""
	case isConflict(err): // it is paused already
		k.count("pause refused")
	default:
		k.lost(ctx, "pause", err)
	}
}

func isConflict(err error) bool {
	var answer *client.Error
	return errors.As(err, &answer) && answer.Status == http.StatusConflict
}

func (k *soak) kill(sb *subject) {
	k.drop(sb)
	ctx, cancel := k.within()
	defer cancel()
	err := k.api.Kill(ctx, sb.id)
	switch {
	case err == nil, client.NotFound(err) && sb.gone:
		k.count("kill")
		sb.id = ""
	case client.NotFound(err):
		k.t.Errorf("sandbox %s is lost", sb.id)
		sb.id = ""
	default:
		sb.gone = k.lost(ctx, "kill", err) || sb.gone
	}
}

// account compares what the server lists with what the workers have, reads every
// sandbox once more and kills it.
func (k *soak) account() {
	listed := map[string]bool{}
	ctx, cancel := k.within()
	defer cancel()
	for info, err := range k.api.List(ctx, client.ListOptions{}) {
		if err != nil {
			k.t.Fatal(err)
		}
		listed[info.ID] = true
	}
	for _, sb := range k.alive {
		id := sb.id
		if !listed[id] && !sb.gone {
			k.t.Errorf("sandbox %s is not listed", id)
		}
		delete(listed, id)
		k.read(sb)
		if sb.id != "" {
			k.kill(sb)
		}
	}
	if len(listed) > k.maybe {
		k.t.Errorf("%d sandboxes are listed that nobody made; the answers of %d creates were lost", len(listed), k.maybe)
	}
	for id := range listed {
		if err := k.api.Kill(ctx, id); err != nil {
			k.t.Errorf("killing %s: %v", id, err)
		}
	}
}
