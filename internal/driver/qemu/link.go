package qemu

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"hearth/internal/driver/microvm"
	"hearth/internal/driver/microvm/channel"
	"hearth/internal/driver/qemu/tenure"
	"hearth/internal/hearth"
)

const (
	// exitGrace is what a machine has to end in after its first program has. Then
	// it is ended.
	exitGrace  = 4 * time.Second
	succession = 5 * time.Second
	// firstGreeting is what a guest that runs answers in many times over.
	firstGreeting = 500 * time.Millisecond
	lastWords     = time.Second // for what a machine said last to be read, after its end
)

// link is a machine's connections to its guest: the channel, which is opened when
// it is first needed and again when it broke, and the console. There is one of
// each in a machine, so a process that has to use them takes them over from
// another that had them.
type link struct {
	m       *machine
	console microvm.Console

	turn chan struct{} // holds one token: who has it may use what follows
	held *possession   // nil: another process's, or nobody's
	over bool          // the machine has ended
}

// possession is one time of having the connections.
type possession struct {
	tenure  *tenure.Tenure
	life    context.Context
	end     context.CancelFunc
	console net.Conn
	channel *channel.Channel
	failed  chan struct{}  // closed when it did not come about
	read    chan struct{}  // closed when nothing more comes from the console
	work    sync.WaitGroup // goroutines of connections
}

func newLink(m *machine) *link {
	l := &link{m: m, turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	return l
}

func (l *link) take(ctx context.Context) error {
	select {
	case <-l.turn:
		return nil
	case <-l.m.done:
		return l.m.ended()
	case <-ctx.Done():
		return hearth.Wrap(hearth.DeadlineExceeded, context.Cause(ctx), "machine %s: the guest did not answer in time", l.m.id)
	}
}

// own takes the machine's connections, unless this process has them.
func (l *link) own(ctx context.Context) error {
	if err := l.take(ctx); err != nil {
		return err
	}
	defer func() { l.turn <- struct{}{} }()
	_, err := l.possess(ctx)
	return err
}

// possess is own for who has the turn.
func (l *link) possess(ctx context.Context) (*possession, error) {
	if l.over {
		return nil, hearth.Errorf(hearth.NotFound, "machine %s has ended", l.m.id)
	}
	if l.held != nil {
		return l.held, nil
	}
	ctx, cancel := context.WithTimeout(ctx, succession)
	defer cancel()
	p := &possession{failed: make(chan struct{})}
	p.life, p.end = context.WithCancel(context.Background())
	var err error
	if p.tenure, err = tenure.Take(ctx, l.m.dir, func() { l.yield(p) }); err != nil {
		p.end()
		return nil, hearth.Wrap(hearth.Unavailable, err, "machine %s cannot be taken over", l.m.id)
	}
	if p.console, err = dial(ctx, l.m.dir, consoleSocket); err != nil {
		p.end()
		close(p.failed)
		p.tenure.Close()
		return nil, hearth.Wrap(hearth.Unavailable, err, "machine %s has no console", l.m.id)
	}
	l.held = p
	p.read = make(chan struct{})
	p.work.Go(func() {
		defer close(p.read)
		_ = l.console.Follow(p.console) // which ends with QEMU, or with the possession
	})
	return p, nil
}

// yield lets go of everything for another process.
func (l *link) yield(p *possession) {
	p.end() // whoever has the turn gives up what it waits for
	select {
	case <-l.turn:
	case <-p.failed:
		return
	}
	p.close()
	if l.held == p {
		l.held = nil
	}
	l.turn <- struct{}{}
}

// close ends the connections. Idempotent.
func (p *possession) close() {
	p.end()
	if p.console != nil {
		_ = p.console.Close()
	}
	if p.channel != nil {
		_ = p.channel.Close()
	}
	p.work.Wait()
}

// finish lets go for good, when the machine has ended or goes on without us.
func (l *link) finish() {
	<-l.turn
	p := l.held
	l.held, l.over = nil, true
	l.turn <- struct{}{}
	if p == nil {
		return
	}
	if p.read != nil {
		select { // what the machine said last explains its end
		case <-p.read:
		case <-time.After(lastWords):
		}
	}
	p.close()
	p.tenure.Close()
}

// dial connects to a socket in a machine's directory.
func dial(ctx context.Context, dir, name string) (net.Conn, error) {
	d, path, err := tenure.At(dir, name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return (&net.Dialer{}).DialContext(ctx, "unix", path)
}

// open returns a channel that works, as far as is known. One that is new is
// configured with the machine's settings, which tell the time and so are made as
// late as can be.
func (l *link) open(ctx context.Context, h history) (ch *channel.Channel, fresh bool, err error) {
	if err := l.take(ctx); err != nil {
		return nil, false, err
	}
	defer func() { l.turn <- struct{}{} }()
	p, err := l.possess(ctx)
	if err != nil {
		return nil, false, err
	}
	if p.channel != nil {
		select {
		case <-p.channel.Done():
			_ = p.channel.Close()
			p.channel = nil
		default:
			return p.channel, false, nil
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.life, cancel)()
	if ch, err = l.greet(ctx); err != nil {
		return nil, false, err
	}
	if err := ch.Configure(ctx, l.m.settings(h)); err != nil {
		return nil, false, errors.Join(err, ch.Close())
	}
	p.channel = ch
	p.work.Go(func() { l.await(p.life, ch) })
	return ch, true, nil
}

// greet opens a channel. QEMU loses what is said to the guest while it finds out
// that an earlier connection has ended, which it does not do while the guest
// stands still; so a greeting that is not answered is repeated on a connection of
// its own, each time with more patience.
func (l *link) greet(ctx context.Context) (*channel.Channel, error) {
	for patience := firstGreeting; ; patience *= 2 {
		conn, err := dial(ctx, l.m.dir, guestSocket)
		if err != nil {
			return nil, hearth.Wrap(hearth.Unavailable, err, "machine %s has no channel", l.m.id)
		}
		attempt, cancel := context.WithTimeout(ctx, patience)
		ch, err := channel.Open(attempt, conn)
		cancel()
		if err == nil || ctx.Err() != nil || hearth.KindOf(err) != hearth.DeadlineExceeded {
			return ch, err
		}
	}
}

// await waits for the guest's word on how its first program ended, and sees to
// it that the machine ends, too.
func (l *link) await(ctx context.Context, ch *channel.Channel) {
	exit, err := ch.Wait(ctx)
	if err != nil {
		return // broken: the next to need a channel opens another
	}
	l.m.report(exit)
	select {
	case <-ctx.Done():
	case <-time.After(exitGrace):
		l.m.kill()
	}
}
