package api

import (
	"context"
	"testing"

	"hearth/internal/control/compare"
	"hearth/internal/hearth"
)

// fakeDifferences knows one difference, and of no snapshot called "none".
type fakeDifferences struct{}

func (fakeDifferences) Diff(_ context.Context, _ hearth.TeamID, from, to string, limit int) (*compare.Result, error) {
	if from == "none" || to == "none" {
		return nil, hearth.Errorf(hearth.NotFound, "snapshot 'none' not found")
	}
	return &compare.Result{
		From: hearth.SnapshotID(from), To: hearth.SnapshotID(to), Truncated: limit < 2,
		Added: compare.Totals{Count: 2, Bytes: 7}, Changes: []compare.Change{{Path: "/a\xff", What: compare.Added, Kind: hearth.RegularFile, Size: 7}},
	}, nil
}

func TestDiff(t *testing.T) {
	f := newFixture(t)
	want(t, f.do("GET", "/v2/snapshots/s1/diff?from=golden%3Av1", ""), 200,
		`"from":"golden:v1"`, `"to":"s1"`, `"added":{"bytes":7,"count":2}`, `"truncated":false`,
		`{"change":"added","kind":"file","path":"/a�","size":7,"sizeBefore":0}`)
	want(t, f.do("GET", "/v2/snapshots/s1/diff?from=s2&limit=1", ""), 200, `"truncated":true`)
	for _, tc := range []struct {
		path   string
		status int
		says   string
	}{
		{"s1/diff", 400, "from is required"},
		{"s1/diff?from=s2&limit=-1", 400, "limit must be at least 0"},
		{"s1/diff?from=s2&limit=10001", 400, "limit must be at most 10000"},
		{"s1/diff?from=A%20B", 400, "from must be [team/]name[:tag]"},
		{"none/diff?from=s1", 404, "not found"},
		{"s1/diff?from=none", 404, "not found"},
	} {
		want(t, f.do("GET", "/v2/snapshots/"+tc.path, ""), tc.status, tc.says)
	}
	bare := newFixture(t, func(d *Deps) { d.Differences = nil })
	want(t, bare.do("GET", "/v2/snapshots/s1/diff?from=s2", ""), 400, "not supported")
}
