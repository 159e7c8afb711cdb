package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// Diff is what differs between the files of two snapshots.
type Diff struct {
	From      string       `json:"from"` // IDs
	To        string       `json:"to"`
	Added     DiffTotals   `json:"added"`
	Changed   DiffTotals   `json:"changed"` // bytes after the change
	Removed   DiffTotals   `json:"removed"`
	Changes   []FileChange `json:"changes"`   // by path
	Truncated bool         `json:"truncated"` // there are more than are listed; the totals count all
}

// DiffTotals counts changes of one sort.
type DiffTotals struct {
	Count int   `json:"count"`
	Bytes int64 `json:"bytes"`
}

// FileChange is one difference.
type FileChange struct {
	Path       string `json:"path"`
	Change     string `json:"change"` // added, changed or removed
	Kind       string `json:"kind"`   // file, directory, symlink or other
	Size       int64  `json:"size"`
	SizeBefore int64  `json:"sizeBefore"`
}

// Diff says what became of a snapshot's files in another one, by what the file
// system says of them, not by content. At most limit changes are listed, of at
// most 10,000; 0 is the server's default.
func (c *Client) Diff(ctx context.Context, from, to string, limit int) (*Diff, error) {
	q := url.Values{"from": {from}}
	if limit != 0 { // a negative one is the server's to refuse
		q.Set("limit", strconv.Itoa(limit))
	}
	var out Diff
	if _, err := c.call(ctx, http.MethodGet, "/v2/snapshots/"+url.PathEscape(to)+"/diff?"+q.Encode(), nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}
