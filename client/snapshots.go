package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"
)

// Snapshot is a sandbox's state that was kept.
type Snapshot struct {
	ID        string    `json:"snapshotID"` // what Create takes as its template
	Names     []string  `json:"names"`
	Sandbox   string    `json:"sandboxID"` // that it was taken of
	Template  string    `json:"templateID"`
	CreatedAt time.Time `json:"createdAt"`
	Bytes     int64     `json:"bytes"` // of its own files, without what they refer to
}

// Snapshot keeps a running sandbox's memory and files under a name, name[:tag],
// or under none; the sandbox goes on.
func (c *Client) Snapshot(ctx context.Context, id, name string) (*Snapshot, error) {
	return c.snapshot(ctx, id, name, map[string]any{})
}

func (c *Client) snapshot(ctx context.Context, id, name string, body map[string]any) (*Snapshot, error) {
	if name != "" {
		body["name"] = name
	}
	var out Snapshot
	if _, err := c.call(ctx, http.MethodPost, sandboxPath(id, "/snapshots"), body, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Snapshots yields the team's snapshots, newest first, of one sandbox unless id
// is empty. An error ends it.
func (c *Client) Snapshots(ctx context.Context, id string) iter.Seq2[Snapshot, error] {
	return func(yield func(Snapshot, error) bool) {
		q := url.Values{}
		if id != "" {
			q.Set("sandboxID", id)
		}
		for {
			var page []Snapshot
			h, err := c.call(ctx, http.MethodGet, "/snapshots?"+q.Encode(), nil, &page)
			if err != nil {
				yield(Snapshot{}, err)
				return
			}
			for _, s := range page {
				if !yield(s, nil) {
					return
				}
			}
			next := h.Get("X-Next-Token")
			if next == "" {
				return
			}
			q.Set("nextToken", next)
		}
	}
}

// Export writes a snapshot to w as one file, with all that it needs. After an error
// what was written is no snapshot.
func (c *Client) Export(ctx context.Context, id string, w io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.api+"/v2/snapshots/"+url.PathEscape(id)+"/export", nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-API-Key", c.key)
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return errorOf(resp)
	}
	_, err = io.Copy(w, resp.Body)
	return err
}

// Import makes a snapshot of what Export wrote, here or elsewhere, under a new ID.
func (c *Client) Import(ctx context.Context, r io.Reader) (*Snapshot, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.api+"/v2/snapshots/import", io.NopCloser(r))
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-API-Key", c.key)
	req.Header.Set("Content-Type", "application/zstd")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return nil, errorOf(resp)
	}
	var out Snapshot
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&out); err != nil {
		return nil, fmt.Errorf("the answer to an import is not what it should be: %w", err)
	}
	return &out, nil
}

// DeleteSnapshot deletes a snapshot, by ID or name. What was made from it lives on.
// The protocol has one call that deletes snapshots and templates: what is a template
// is refused here.
func (c *Client) DeleteSnapshot(ctx context.Context, id string) error {
	_, err := c.call(ctx, http.MethodGet, "/templates/aliases/"+url.PathEscape(id), nil, nil)
	switch {
	case err == nil:
		return &Error{Status: http.StatusBadRequest, Message: fmt.Sprintf("'%s' is a template, not a snapshot", id)}
	case !NotFound(err):
		return err
	}
	err = c.DeleteTemplate(ctx, id)
	if NotFound(err) {
		return &Error{Status: http.StatusNotFound, Message: fmt.Sprintf("snapshot '%s' not found", id)}
	}
	return err
}

// Fork is one of the sandboxes that Client.Fork was asked for, or why there is none.
type Fork struct {
	Sandbox *Sandbox
	Err     error
}

// Fork makes count sandboxes that begin as one is now and live for timeout. It
// goes on; a paused one stays paused.
func (c *Client) Fork(ctx context.Context, id string, count int, timeout time.Duration) ([]Fork, error) {
	body := map[string]any{"count": count, "timeout": wholeSeconds(timeout)}
	var out []struct {
		Sandbox *created `json:"sandbox"`
		Error   *struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	header, err := c.call(ctx, http.MethodPost, sandboxPath(id, "/fork"), body, &out)
	if err != nil {
		return nil, err
	}
	forks := make([]Fork, len(out))
	for i, f := range out {
		switch {
		case f.Sandbox != nil:
			forks[i].Sandbox = newSandbox(c, *f.Sandbox, header)
		case f.Error != nil:
			forks[i].Err = &Error{Status: f.Error.Code, Message: f.Error.Message}
		default:
			forks[i].Err = &Error{Status: http.StatusInternalServerError, Message: "the server says neither sandbox nor error"}
		}
	}
	return forks, nil
}

// Rollback takes a running sandbox back to a snapshot of its line: same ID, same
// tokens. When that fails it goes on as it was.
func (c *Client) Rollback(ctx context.Context, id, snapshot string) (*Sandbox, error) {
	return c.rollback(ctx, id, map[string]any{"snapshotID": snapshot})
}

func (c *Client) rollback(ctx context.Context, id string, to map[string]any) (*Sandbox, error) {
	var out created
	header, err := c.call(ctx, http.MethodPost, "/v2/sandboxes/"+url.PathEscape(id)+"/rollback", to, &out)
	if err != nil {
		return nil, err
	}
	return newSandbox(c, out, header), nil
}

// Tree is everything that shares a line with a sandbox, oldest first.
type Tree struct {
	Snapshots []TreeSnapshot `json:"snapshots"`
	Sandboxes []TreeSandbox  `json:"sandboxes"`
}

// TreeSnapshot is a snapshot in a Tree.
type TreeSnapshot struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`   // name:tag; empty: none
	Parent    string    `json:"parent"` // the snapshot before it; empty: it is the first
	Sandbox   string    `json:"sandboxID"`
	Kind      string    `json:"kind"`   // kept, step or fork
	Usable    bool      `json:"usable"` // false: only its place in the line is left
	CreatedAt time.Time `json:"createdAt"`
	Bytes     int64     `json:"bytes"` // of its own files, without what they refer to

	// WholeBytes is what a sandbox that starts from it has: its files and all that they
	// refer to. AddedBytes is what is on disk for it, and neither for the nearest one
	// before it that is usable nor for its template. Nil: it is not usable, or that
	// could not be found out, or 1000 of the tree that are usable are newer.
	WholeBytes *int64 `json:"wholeBytes"`
	AddedBytes *int64 `json:"addedBytes"`

	Step  int64  `json:"step"`  // its number in its sandbox's history; 0: it was none
	Label string `json:"label"` // what ran in the step
}

// TreeSandbox is a sandbox in a Tree.
type TreeSandbox struct {
	ID    string `json:"sandboxID"`
	Head  string `json:"head"` // the newest snapshot that its state comes from; empty: none
	State string `json:"state"`
}

// Tree returns everything that shares a line with a sandbox.
func (c *Client) Tree(ctx context.Context, id string) (*Tree, error) {
	var out Tree
	if _, err := c.call(ctx, http.MethodGet, "/v2/sandboxes/"+url.PathEscape(id)+"/tree", nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}
