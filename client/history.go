package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// History is the steps of a sandbox that was created with one, oldest first.
type History struct {
	MaxBytes int64  `json:"maxBytes"` // that steps may occupy; 0: none are taken
	Bytes    int64  `json:"bytes"`    // that are there for steps alone
	Head     int64  `json:"head"`     // the step that the sandbox's state comes from; 0: none that is left
	Steps    []Step `json:"steps"`
}

// Step is what a sandbox was after a command, a terminal or a cell.
type Step struct {
	Number    int64     `json:"step"`
	Parent    int64     `json:"parent"`     // the step before it; 0: none that is left
	Snapshot  string    `json:"snapshotID"` // what Create and Rollback take; empty: it could not be taken
	Error     string    `json:"error"`      // why not
	CreatedAt time.Time `json:"createdAt"`
	Label     string    `json:"label"` // what ran
	Bytes     int64     `json:"bytes"` // of its own files
	Kept      bool      `json:"kept"`  // it is not thinned and does not go with the sandbox
}

// History returns a sandbox's steps.
func (c *Client) History(ctx context.Context, id string) (*History, error) {
	var out History
	if _, err := c.call(ctx, http.MethodGet, "/v2/sandboxes/"+url.PathEscape(id)+"/history", nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// RollbackTo takes a running sandbox back to a step of its history.
func (c *Client) RollbackTo(ctx context.Context, id string, step int64) (*Sandbox, error) {
	return c.rollback(ctx, id, map[string]any{"step": step})
}

// KeepStep makes a step a snapshot that stays until it is deleted, under a name,
// name[:tag], or under none.
func (c *Client) KeepStep(ctx context.Context, id string, step int64, name string) (*Snapshot, error) {
	return c.snapshot(ctx, id, name, map[string]any{"step": step})
}
