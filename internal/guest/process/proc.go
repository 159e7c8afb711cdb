package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/gen/guestv1"
	"hearth/internal/guest/process/reap"
	"hearth/internal/hearth"
)

const (
	pipeChunk = 32 << 10 // largest data event of stdout or stderr
	ptyChunk  = 16 << 10 // of a terminal

	// After a process has ended and its output is to be cut, what already sits in
	// the kernel's buffers is still delivered: until nothing came for drainQuiet,
	// and never more than the largest pipe holds.
	drainQuiet = 250 * time.Millisecond
	drainBytes = 1 << 20
)

// proc is a process from its start until its end has been reported.
type proc struct {
	svc     *Service
	config  *guestv1.ProcessConfig
	tag     *string
	pid     uint32
	seq     uint64
	child   *reap.Child
	streams *streams

	input    chan struct{} // one token: who holds it may write input
	draining atomic.Bool
	timedOut atomic.Bool
	cutOnce  sync.Once
	cut      chan struct{} // closed: what is left of the output is not waited for
	limit    *time.Timer   // kills at the deadline; nil: none

	mu    sync.Mutex
	subs  map[*subscriber]struct{}
	stdin bool                           // stdin is open
	end   *guestv1.ProcessEvent_EndEvent // set before done is closed
	done  chan struct{}
}

// subscriber is one stream that shows a process.
type subscriber struct {
	events chan *guestv1.ProcessEvent // unbuffered: the process waits for its reader
	gone   chan struct{}
	once   sync.Once
}

func (s *subscriber) leave() { s.once.Do(func() { close(s.gone) }) }

// begin starts what l says, with a first subscriber that misses nothing.
func (s *Service) begin(l *launch, req *guestv1.StartRequest, deadline time.Time) (*proc, *subscriber, error) {
	st, err := l.open()
	if err != nil {
		return nil, nil, err
	}
	child, err := l.start(s.reaper, st)
	if err != nil {
		st.closeAll()
		return nil, nil, err
	}
	st.closeChild()
	p := &proc{
		svc: s, config: req.GetProcess(), tag: req.Tag, pid: uint32(child.Pid()), child: child, streams: st,
		input: make(chan struct{}, 1), cut: make(chan struct{}), done: make(chan struct{}),
		subs: map[*subscriber]struct{}{}, stdin: st.stdin != nil,
	}
	sub := p.subscribe()
	if err := s.add(p); err != nil {
		_ = child.SignalGroup(unix.SIGKILL)
		st.closeAll()
		return nil, nil, err
	}
	if !deadline.IsZero() {
		p.limit = time.AfterFunc(time.Until(deadline), func() {
			p.timedOut.Store(true)
			p.kill()
		})
	}
	go p.supervise()
	return p, sub, nil
}

func (p *proc) subscribe() *subscriber {
	sub := &subscriber{events: make(chan *guestv1.ProcessEvent), gone: make(chan struct{})}
	p.mu.Lock()
	p.subs[sub] = struct{}{}
	p.mu.Unlock()
	return sub
}

func (p *proc) unsubscribe(sub *subscriber) {
	sub.leave()
	p.mu.Lock()
	delete(p.subs, sub)
	p.mu.Unlock()
}

// supervise reads the output to its end, then reports the process's end.
func (p *proc) supervise() {
	defer p.svc.work.Done()
	expendable(p.pid)
	var pumps sync.WaitGroup
	if tty := p.streams.tty; tty != nil {
		pumps.Go(func() { p.pump(tty, ptyChunk, ptyEvent) })
	} else {
		pumps.Go(func() { p.pump(p.streams.stdout, pipeChunk, stdoutEvent) })
		pumps.Go(func() { p.pump(p.streams.stderr, pipeChunk, stderrEvent) })
	}
	dry := make(chan struct{})
	go func() {
		pumps.Wait()
		close(dry)
	}()
	<-p.child.Exited()
	if p.streams.tty != nil { // a terminal is hung up when its leader ends
		p.drain()
	}
	select {
	case <-dry:
	case <-p.cut:
		p.drain()
		<-dry
	}
	p.finish()
}

// expendable lets the kernel prefer a process to the daemon when memory runs out: best
// effort. It goes without package os, which would make twice as many system calls,
// while the process starts.
func expendable(pid uint32) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/oom_score_adj", pid), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	_, _ = unix.Write(fd, []byte("100"))
	_ = unix.Close(fd)
}

// drain makes the pumps stop once nothing more is waiting to be read.
func (p *proc) drain() {
	p.draining.Store(true)
	for _, f := range []*os.File{p.streams.stdout, p.streams.stderr, p.streams.tty} {
		if f != nil {
			_ = f.SetReadDeadline(time.Now().Add(drainQuiet))
		}
	}
}

// pump hands on what comes out of f until its end, an error or the end of draining.
func (p *proc) pump(f *os.File, size int, event func([]byte) *guestv1.ProcessEvent) {
	buf := make([]byte, size)
	from := drainage{file: f, begun: &p.draining}
	for {
		n, err := from.Read(buf)
		if n > 0 {
			p.publish(buf[:n], event)
		}
		if err != nil {
			return
		}
	}
}

// drainage reads what a process writes until its end; once draining has begun, until nothing
// came for drainQuiet, or drainBytes did. A read that waits then needs a deadline of its own.
type drainage struct {
	file  *os.File
	begun *atomic.Bool
	read  int // since then
}

func (d *drainage) Read(buf []byte) (int, error) {
	begun := d.begun.Load()
	if begun {
		if d.read > drainBytes {
			return 0, io.EOF
		}
		_ = d.file.SetReadDeadline(time.Now().Add(drainQuiet))
	}
	n, err := d.file.Read(buf)
	if begun {
		d.read += n
	}
	return n, err
}

// publish hands data to every subscriber and returns when all have taken it or left.
func (p *proc) publish(data []byte, event func([]byte) *guestv1.ProcessEvent) {
	p.mu.Lock()
	subs := make([]*subscriber, 0, len(p.subs))
	for s := range p.subs {
		subs = append(subs, s)
	}
	p.mu.Unlock()
	if len(subs) == 0 {
		return
	}
	ev := event(append([]byte(nil), data...))
	for _, s := range subs {
		if !s.offer(ev, p.svc.stall) {
			p.unsubscribe(s)
		}
	}
}

// offer gives ev to s; false means that s is gone or has been silent for too long.
func (s *subscriber) offer(ev *guestv1.ProcessEvent, stall time.Duration) bool {
	select {
	case s.events <- ev:
		return true
	default:
	}
	timer := time.NewTimer(stall)
	defer timer.Stop()
	select {
	case s.events <- ev:
		return true
	case <-s.gone:
	case <-timer.C:
	}
	return false
}

// finish reports the end. Every chunk has been taken by then, so that nothing follows it.
func (p *proc) finish() {
	if p.limit != nil {
		p.limit.Stop()
	}
	p.end = endEvent(p.child.Status())
	p.mu.Lock()
	p.stdin = false
	p.mu.Unlock()
	p.streams.closeAll()
	p.svc.retire(p)
	close(p.done)
}

// signal sends sig to the whole process group; its output is not waited for after its end.
func (p *proc) signal(sig syscall.Signal) error {
	err := p.child.SignalGroup(sig)
	p.cutOnce.Do(func() { close(p.cut) })
	if errors.Is(err, unix.ESRCH) {
		return hearth.Errorf(hearth.NotFound, "process with pid %d not found", p.pid)
	}
	return err
}

// over reports whether the process was ended by a signal and only the rest of
// its output is still on its way: for everybody but its streams it is gone.
func (p *proc) over() bool {
	select {
	case <-p.cut:
		return !p.child.Alive()
	default:
		return false
	}
}

func (p *proc) kill() { _ = p.signal(unix.SIGKILL) }

// write sends data to stdin or the terminal. It blocks while the process does
// not read, until ctx ends.
func (p *proc) write(ctx context.Context, f *os.File, data []byte) error {
	select {
	case p.input <- struct{}{}:
		defer func() { <-p.input }()
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-p.done:
		return os.ErrClosed
	}
	if err := f.SetWriteDeadline(time.Time{}); err != nil {
		return err
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = f.SetWriteDeadline(time.Unix(1, 0))
	})
	_, err := f.Write(data)
	if !stop() { // the deadline must be in place before the next writer clears it
		<-interrupted
		if err != nil {
			return context.Cause(ctx)
		}
	}
	return err
}

// openStdin returns stdin if the process has one that is still open.
func (p *proc) openStdin() (*os.File, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.streams.stdin, p.stdin
}

// closeStdin gives the process the end of its input. Repeating it is fine.
func (p *proc) closeStdin() {
	p.mu.Lock()
	open := p.stdin
	p.stdin = false
	p.mu.Unlock()
	if open {
		_ = p.streams.stdin.Close()
	}
}
