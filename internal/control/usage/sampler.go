package usage

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"hearth/internal/control/routes"
	"hearth/internal/hearth"
	"hearth/internal/node"
)

// Bounds of sampling.
const (
	samplers     = 8
	usageTimeout = 2 * time.Second
)

// Sampler asks the nodes for the usage of every running sandbox, again and again.
type Sampler struct {
	Every  time.Duration
	Into   *Samples
	Routes *routes.Table
	Node   func(id hearth.NodeID) (node.Service, error)
	Now    func() time.Time
	Log    *slog.Logger

	Missing func(id hearth.SandboxID) // its node does not know it
}

// Run samples until ctx ends.
func (s *Sampler) Run(ctx context.Context) {
	tick := time.NewTicker(s.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var wg sync.WaitGroup
		turns := make(chan struct{}, samplers)
		for _, id := range s.Routes.Live() {
			turns <- struct{}{}
			wg.Go(func() {
				defer func() { <-turns }()
				s.one(ctx, id)
			})
		}
		wg.Wait()
		s.Into.Keep(func(id hearth.SandboxID) bool {
			_, ok := s.Routes.Route(id)
			return ok
		})
	}
}

func (s *Sampler) one(ctx context.Context, id hearth.SandboxID) {
	r, ok := s.Routes.Route(id)
	if !ok || r.State != hearth.Running {
		return
	}
	svc, err := s.Node(r.Node)
	if err != nil {
		return // its node is away; whoever follows nodes says so
	}
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	u, err := svc.Usage(ctx, id)
	if err != nil && hearth.KindOf(err) == hearth.NotFound {
		s.Missing(id)
	}
	if err != nil {
		s.Log.Debug("usage could not be sampled", "sandbox", id, "err", err)
		return
	}
	if u.At.IsZero() {
		u.At = s.Now()
	}
	s.Into.Add(id, u)
}
