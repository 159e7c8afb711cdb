package api

import (
	"context"
	"strings"

	"hearth/internal/control/compare"
	"hearth/internal/gen/rest"
	"hearth/internal/hearth"
)

const defaultChanges = 1000

// DiffSnapshots says what became of one snapshot's files in another.
func (s *server) DiffSnapshots(ctx context.Context, req rest.DiffSnapshotsRequestObject) (rest.DiffSnapshotsResponseObject, error) {
	if s.differences == nil {
		return nil, notYet("comparing snapshots")
	}
	team := callerOf(ctx).team
	to, err := snapshotRef(team, "snapshotID", req.SnapshotID)
	if err != nil {
		return nil, err
	}
	from, err := snapshotRef(team, "from", req.Params.From)
	if err != nil {
		return nil, err
	}
	r, err := s.differences.Diff(ctx, team.ID, from, to, int(or(req.Params.Limit, defaultChanges)))
	if err != nil {
		return nil, err
	}
	return rest.DiffSnapshots200JSONResponse(toDiff(r)), nil
}

func toDiff(r *compare.Result) rest.SnapshotDiff {
	totals := func(t compare.Totals) rest.DiffTotals { return rest.DiffTotals{Count: t.Count, Bytes: t.Bytes} }
	out := rest.SnapshotDiff{
		From: string(r.From), To: string(r.To), Added: totals(r.Added), Changed: totals(r.Changed), Removed: totals(r.Removed),
		Changes: make([]rest.FileChange, len(r.Changes)), Truncated: r.Truncated,
	}
	for i, c := range r.Changes {
		out.Changes[i] = rest.FileChange{
			Path: strings.ToValidUTF8(c.Path, "\uFFFD"), Change: rest.FileChangeChange(c.What), Kind: toEntryKind(c.Kind),
			Size: c.Size, SizeBefore: c.Before,
		}
	}
	return out
}

func toEntryKind(k hearth.EntryKind) rest.FileChangeKind {
	switch k {
	case hearth.RegularFile:
		return "file"
	case hearth.Directory:
		return "directory"
	case hearth.Symlink:
		return "symlink"
	}
	return "other"
}
