package files

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"time"

	"connectrpc.com/connect"

	"hearth/internal/gen/guestv1"
	"hearth/internal/guest/process/rpcerr"
	"hearth/internal/hearth"
)

const (
	maxWatchers  = 256            // polled watchers at a time
	maxPending   = 16 << 10       // events kept for one of them
	watcherIdle  = time.Hour      // one that nobody polled for so long may be dropped
	watcherWakes = 24 * time.Hour // no keepalives are needed
)

// watcher is a watch whose events are fetched by polling.
type watcher struct {
	stop context.CancelFunc

	mu     sync.Mutex
	events []*guestv1.FilesystemEvent
	err    error
	polled time.Time
}

func (w *watcher) take() ([]*guestv1.FilesystemEvent, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.polled = time.Now()
	events := w.events
	w.events = nil
	if len(events) > 0 {
		return events, nil // the error comes with the next poll
	}
	return nil, w.err
}

func (w *watcher) put(ev *guestv1.FilesystemEvent) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.events) == maxPending {
		return hearth.Errorf(hearth.Internal, "more than %d changes were not fetched; some are lost", maxPending)
	}
	w.events = append(w.events, ev)
	return nil
}

func (w *watcher) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
}

// CreateWatcher starts to collect changes. It answers the RPC of that name.
func (s *Service) CreateWatcher(_ context.Context, req *connect.Request[guestv1.CreateWatcherRequest]) (*connect.Response[guestv1.CreateWatcherResponse], error) {
	path, _, err := s.locate(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, rpcerr.From(err)
	}
	ctx, stop := context.WithCancel(s.ctx)
	w := &watcher{stop: stop, polled: time.Now()}
	id := "w" + rand.Text()
	if err := s.admit(id, w); err != nil {
		stop()
		return nil, rpcerr.From(err)
	}
	k, err := openWatch(path, req.Msg)
	if err != nil {
		s.drop(id)
		return nil, rpcerr.From(err)
	}
	s.work.Go(func() {
		if err := k.run(ctx, watcherWakes, w.put, nil); !errors.Is(err, context.Canceled) {
			w.fail(err)
		}
	})
	return connect.NewResponse(&guestv1.CreateWatcherResponse{WatcherId: id}), nil
}

// admit makes room for w and puts it into the table.
func (s *Service) admit(id string, w *watcher) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.watchers) >= maxWatchers {
		for id, old := range s.watchers {
			old.mu.Lock()
			idle := time.Since(old.polled)
			old.mu.Unlock()
			if idle > watcherIdle {
				old.stop()
				delete(s.watchers, id)
			}
		}
	}
	if len(s.watchers) >= maxWatchers {
		return hearth.Errorf(hearth.ResourceExhausted, "there are %d watchers already, the limit", maxWatchers)
	}
	s.watchers[id] = w
	return nil
}

// drop ends a watcher and reports whether there was one.
func (s *Service) drop(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.watchers[id]
	if ok {
		w.stop()
		delete(s.watchers, id)
	}
	return ok
}

// GetWatcherEvents fetches what a watcher has collected. It answers the RPC of that name.
func (s *Service) GetWatcherEvents(_ context.Context, req *connect.Request[guestv1.GetWatcherEventsRequest]) (*connect.Response[guestv1.GetWatcherEventsResponse], error) {
	s.mu.Lock()
	w := s.watchers[req.Msg.GetWatcherId()]
	s.mu.Unlock()
	if w == nil {
		return nil, rpcerr.From(noWatcher(req.Msg.GetWatcherId()))
	}
	events, err := w.take()
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return connect.NewResponse(&guestv1.GetWatcherEventsResponse{Events: events}), nil
}

// RemoveWatcher ends a watcher. It answers the RPC of that name.
func (s *Service) RemoveWatcher(_ context.Context, req *connect.Request[guestv1.RemoveWatcherRequest]) (*connect.Response[guestv1.RemoveWatcherResponse], error) {
	if !s.drop(req.Msg.GetWatcherId()) {
		return nil, rpcerr.From(noWatcher(req.Msg.GetWatcherId()))
	}
	return connect.NewResponse(&guestv1.RemoveWatcherResponse{}), nil
}

func noWatcher(id string) error {
	return hearth.Errorf(hearth.NotFound, "watcher with id %s not found", id)
}
