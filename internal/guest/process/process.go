// Package process is the process service of the guest daemon: it starts
// commands and terminals as the user a request names, and streams what they print.
//
// Output is never stored. Every chunk is handed to each subscriber in turn
// before the next one is read, so a slow subscriber slows the process down
// through its pipe, exactly as a slow reader of a shell pipeline would, and the
// daemon's memory stays bounded: one chunk being offered per stream, and one
// being sent per subscriber. A subscriber that takes nothing for StallLimit
// counts as dead and is dropped. With no subscriber, output is read and thrown away.
//
// A process outlives the call that started it. Only a signal, its own end or
// the deadline of the starting call (Connect-Timeout-Ms) end it.
package process

import (
	"context"
	"sync"
	"time"

	"hearth/internal/gen/guestv1"
	"hearth/internal/guest/process/account"
	"hearth/internal/guest/process/reap"
	"hearth/internal/hearth"
)

const (
	// StallLimit is how long a subscriber may leave a chunk untaken.
	StallLimit = 5 * time.Minute
	// Retention is how long the end of a process can still be asked for.
	Retention = 30 * time.Second

	maxRetained = 1024 // ends kept at a time
)

// Service implements the process service. Use New.
type Service struct {
	reaper  *reap.Reaper
	session func() account.Session
	stall   time.Duration
	keep    time.Duration
	users   account.Book

	mu     sync.Mutex
	seq    uint64
	live   map[uint32]*proc
	ended  map[uint32]*ending
	closed bool
	work   sync.WaitGroup // supervisors
}

// Options are what a Service depends on.
type Options struct {
	Reaper  *reap.Reaper           // starts and waits for every process
	Session func() account.Session // what Init set; called once per request
}

// New returns a Service with no processes.
func New(o Options) *Service {
	return &Service{
		reaper: o.Reaper, session: o.Session, stall: StallLimit, keep: Retention,
		live: map[uint32]*proc{}, ended: map[uint32]*ending{},
	}
}

// ending is what is kept of a process after its end.
type ending struct {
	pid   uint32
	tag   *string
	seq   uint64
	end   *guestv1.ProcessEvent_EndEvent
	timer *time.Timer
}

// Close kills every process and waits until all are gone. Later starts fail.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	procs := make([]*proc, 0, len(s.live))
	for _, p := range s.live {
		procs = append(procs, p)
	}
	for _, e := range s.ended {
		e.timer.Stop()
	}
	clear(s.ended)
	s.mu.Unlock()
	for _, p := range procs {
		p.kill()
	}
	s.work.Wait()
}

// add makes a started process known. It replaces whatever is retained under
// the same pid or tag.
func (s *Service) add(p *proc) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return hearth.Errorf(hearth.Unavailable, "the process service is shutting down")
	}
	for pid, e := range s.ended {
		if pid == p.pid || p.tag != nil && e.tag != nil && *p.tag == *e.tag {
			s.forget(e)
		}
	}
	s.seq++
	p.seq = s.seq
	s.live[p.pid] = p
	s.work.Add(1)
	return nil
}

// retire moves a process that has ended from the table to the retained ends.
func (s *Service) retire(p *proc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live[p.pid] != p { // its id has been reused meanwhile
		return
	}
	delete(s.live, p.pid)
	if s.closed {
		return
	}
	e := &ending{pid: p.pid, tag: p.tag, seq: p.seq, end: p.end}
	e.timer = time.AfterFunc(s.keep, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.forget(e)
	})
	s.ended[e.pid] = e
	if len(s.ended) > maxRetained {
		s.forgetOldest()
	}
}

// forget drops a retained end. The lock is held.
func (s *Service) forget(e *ending) {
	e.timer.Stop()
	if s.ended[e.pid] == e {
		delete(s.ended, e.pid)
	}
}

func (s *Service) forgetOldest() {
	var oldest *ending
	for _, e := range s.ended {
		if oldest == nil || e.seq < oldest.seq {
			oldest = e
		}
	}
	s.forget(oldest)
}

// find returns the running process that sel names. Of several with one tag it is the newest.
func (s *Service) find(sel *guestv1.ProcessSelector) (*proc, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.lookup(sel)
	if err == nil && (p == nil || p.over()) {
		err = unknown(sel)
	}
	return p, err
}

// lookup is find with a nil process for an unknown one. The lock is held.
func (s *Service) lookup(sel *guestv1.ProcessSelector) (*proc, error) {
	switch x := sel.GetSelector().(type) {
	case *guestv1.ProcessSelector_Pid:
		return s.live[x.Pid], nil
	case *guestv1.ProcessSelector_Tag:
		var newest *proc
		for _, p := range s.live {
			if p.tag != nil && *p.tag == x.Tag && (newest == nil || p.seq > newest.seq) {
				newest = p
			}
		}
		return newest, nil
	}
	return nil, hearth.Errorf(hearth.InvalidArgument, "process: neither pid nor tag is given")
}

// attach subscribes to the process that sel names, or returns its retained end.
func (s *Service) attach(sel *guestv1.ProcessSelector) (*proc, *subscriber, *ending, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.lookup(sel)
	if err != nil {
		return nil, nil, nil, err
	}
	if p != nil {
		return p, p.subscribe(), nil, nil
	}
	for _, e := range s.ended {
		switch x := sel.GetSelector().(type) {
		case *guestv1.ProcessSelector_Pid:
			if e.pid == x.Pid {
				return nil, nil, e, nil
			}
		case *guestv1.ProcessSelector_Tag:
			if e.tag != nil && *e.tag == x.Tag {
				return nil, nil, e, nil
			}
		}
	}
	return nil, nil, nil, unknown(sel)
}

func unknown(sel *guestv1.ProcessSelector) error {
	if x, ok := sel.GetSelector().(*guestv1.ProcessSelector_Tag); ok {
		return hearth.Errorf(hearth.NotFound, "process with tag %s not found", x.Tag)
	}
	return hearth.Errorf(hearth.NotFound, "process with pid %d not found", sel.GetPid())
}

// infos describes the running processes.
func (s *Service) infos(context.Context) []*guestv1.ProcessInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*guestv1.ProcessInfo, 0, len(s.live))
	for _, p := range s.live {
		if p.over() {
			continue
		}
		list = append(list, &guestv1.ProcessInfo{Config: p.config, Pid: p.pid, Tag: p.tag})
	}
	return list
}
