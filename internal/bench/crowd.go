package bench

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"hearth/internal/bench/figure"
	"hearth/internal/hearth"
	"hearth/internal/store/sqlstore"
)

// rows is how many sandboxes the store of a server holds before the first create.
func (p pool) rows() int {
	switch p {
	case withFewRows:
		return 10
	case withManyRows:
		return 10_000
	}
	return 0
}

// crowdedAPI is row 16: the same requests to a store with ten sandboxes and to
// one with ten thousand. The sandboxes are rows of paused ones without files.
func (r *run) crowdedAPI(ctx context.Context) ([]figure.Figure, error) {
	var lists, creates [2]*figure.Samples
	for i, kind := range []pool{withFewRows, withManyRows} {
		rows := kind.rows()
		lists[i] = figure.Milliseconds(fmt.Sprintf("a page of the list, %d sandboxes in the store", rows))
		creates[i] = figure.Milliseconds(fmt.Sprintf("create, %d sandboxes in the store", rows))
		if err := r.serve(ctx, kind); err != nil {
			return nil, err
		}
		if err := r.crowded(ctx, lists[i], creates[i]); err != nil {
			return nil, err
		}
	}
	t := figure.Target{Ratio: 1.5}
	return []figure.Figure{
		lists[1].Figure().Against("16", t, lists[0].Figure()), creates[1].Figure().Against("16", t, creates[0].Figure()),
	}, nil
}

func (r *run) crowded(ctx context.Context, list, create *figure.Samples) error {
	return r.times(ctx, r.opts.Runs+warmups, func(ctx context.Context, i int) error {
		r.server.settle(ctx)
		began := time.Now()
		if err := r.server.page(ctx); err != nil {
			return err
		}
		listed := time.Since(began)
		began = time.Now()
		sb, err := r.create(ctx, baseTemplate)
		if err != nil {
			return err
		}
		made := time.Since(began)
		r.kill(ctx, sb)
		if i >= warmups {
			list.Took(listed)
			create.Took(made)
		}
		return nil
	})
}

// page asks for one page of the list.
func (s *server) page(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/v2/sandboxes?limit=100", nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-API-Key", s.key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("list: %s: %w", resp.Status, errUnexpected)
	}
	return nil
}

// fill writes rows of paused sandboxes into the database of a server that is away.
func fill(ctx context.Context, data string, rows int) error {
	if rows == 0 {
		return nil
	}
	db, err := sqlstore.Open(ctx, filepath.Join(data, "hearth.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	now := time.Now()
	for range rows {
		sb := &hearth.Sandbox{
			ID: hearth.NewSandboxID(), Team: "default", Template: "bench", State: hearth.Paused, Generation: 1,
			Resources: hearth.Resources{VCPUs: 1, MemoryMiB: 512, DiskMiB: 512},
			OnTimeout: hearth.KillOnTimeout,
			CreatedAt: now, StartedAt: now, EndsAt: now,
		}
		if err := db.CreateSandbox(ctx, sb); err != nil {
			return err
		}
	}
	return nil
}
