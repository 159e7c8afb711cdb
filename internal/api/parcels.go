package api

import (
	"context"
	"net/http"

	"hearth/internal/api/stream"
	"hearth/internal/gen/rest"
	"hearth/internal/hearth"
)

// ExportSnapshot sends a snapshot as one file.
func (s *server) ExportSnapshot(ctx context.Context, req rest.ExportSnapshotRequestObject) (rest.ExportSnapshotResponseObject, error) {
	ref, err := snapshotRef(callerOf(ctx).team, "snapshotID", req.SnapshotID)
	if err != nil {
		return nil, err
	}
	if s.parcels == nil {
		return nil, hearth.Errorf(hearth.Unimplemented, "This server exports no snapshots")
	}
	return &exported{s: s, ctx: ctx, ref: ref}, nil
}

// exported is an answer that is made while it is sent.
type exported struct {
	s   *server
	ctx context.Context
	ref string
}

// VisitExportSnapshotResponse implements rest.ExportSnapshotResponseObject. An
// error halfway cuts the connection: an end would look like that of the file.
func (e *exported) VisitExportSnapshotResponse(w http.ResponseWriter) error {
	out := stream.NewWriter(w, "application/zstd")
	defer out.Done()
	err := e.s.parcels.Export(e.ctx, teamOf(e.ctx), e.ref, out)
	if err == nil || !out.Begun() {
		return err
	}
	e.s.log.Warn("an export was cut off", "request", recordOf(e.ctx).id, "team", teamOf(e.ctx), "err", err)
	panic(http.ErrAbortHandler)
}

// ImportSnapshot makes a snapshot of a file that is read as it comes.
func (s *server) ImportSnapshot(ctx context.Context, req rest.ImportSnapshotRequestObject) (rest.ImportSnapshotResponseObject, error) {
	if s.parcels == nil {
		return nil, hearth.Errorf(hearth.Unimplemented, "This server imports no snapshots")
	}
	team := callerOf(ctx).team
	snap, err := s.parcels.Import(ctx, team.ID, req.Body)
	if err != nil {
		return nil, err
	}
	return rest.ImportSnapshot201JSONResponse(toSnapshot(team, snap)), nil
}
