package api

import (
	"context"
	"strings"
	"time"

	"hearth/internal/control"
	"hearth/internal/gen/rest"
	"hearth/internal/hearth"
	"hearth/internal/store"
)

const defaultFork = 15 * time.Second

// snapshotRef reduces "[team/]name[:tag]", which may also be an ID, to what the
// control plane knows it by: the caller's own namespace says nothing. The field is the
// one of the request that has it.
func snapshotRef(team *hearth.Team, field, text string) (string, error) {
	name := strings.ToLower(strings.TrimSpace(text))
	space, rest, spaced := strings.Cut(name, "/")
	if !spaced {
		rest = name
	}
	alias, tag, tagged := strings.Cut(rest, ":")
	if !onlyOf(alias, "-_") || tagged && !onlyOf(tag, "-_.") || spaced && !onlyOf(space, "-_") {
		return "", hearth.Errorf(hearth.InvalidArgument, "%s must be %s, not '%s'", field, referenceForm, shown(text))
	}
	if tag == "default" {
		rest = alias
	}
	if spaced && space != team.Slug {
		return space + "/" + rest, nil
	}
	return rest, nil
}

// CreateSnapshot keeps a running sandbox's state.
func (s *server) CreateSnapshot(ctx context.Context, req rest.CreateSnapshotRequestObject) (rest.CreateSnapshotResponseObject, error) {
	id, err := hearth.ParseSandboxID(req.SandboxID)
	if err != nil {
		return nil, err
	}
	team := callerOf(ctx).team
	var want control.SnapshotRequest
	body := or(req.Body, rest.SandboxSnapshotRequest{})
	if !or(body.Memory, true) {
		return nil, notYet("memory=false (a snapshot of files alone)")
	}
	if name := or(body.Name, ""); name != "" {
		ref, err := snapshotRef(team, "name", name)
		if err != nil {
			return nil, err
		}
		if space, _, spaced := strings.Cut(ref, "/"); spaced {
			return nil, hearth.Errorf(hearth.InvalidArgument, "namespace '%s' must match your team '%s'", shown(space), team.Slug)
		}
		want.Alias, want.Tag, _ = strings.Cut(ref, ":")
	}
	var snap *hearth.Snapshot
	if body.Step != nil {
		snap, err = s.sandboxes.KeepStep(ctx, team.ID, id, *body.Step, want)
	} else {
		snap, err = s.sandboxes.Snapshot(ctx, team.ID, id, want)
	}
	if err != nil {
		return nil, err
	}
	return rest.CreateSnapshot201JSONResponse(toSnapshot(team, snap)), nil
}

// toSnapshot names a snapshot as create takes it.
func toSnapshot(team *hearth.Team, snap *hearth.Snapshot) rest.SnapshotInfo {
	out := rest.SnapshotInfo{
		SnapshotID: string(snap.ID) + ":default", Names: []string{}, Bytes: new(snap.Bytes()),
		SandboxID: some(string(snap.Sandbox)), TemplateID: some(string(snap.Template)), CreatedAt: new(snap.Created.UTC()),
	}
	if snap.Alias == "" {
		return out
	}
	name := snap.Alias
	if team.Slug != "" {
		name = team.Slug + "/" + name
	}
	out.SnapshotID, out.Names = name+":"+snap.Tag, []string{name}
	return out
}

// ListSnapshots returns one page of the team's snapshots.
func (s *server) ListSnapshots(ctx context.Context, req rest.ListSnapshotsRequestObject) (rest.ListSnapshotsResponseObject, error) {
	p, team := req.Params, callerOf(ctx).team
	f := store.SnapshotFilter{Team: team.ID}
	if p.SandboxID != nil {
		id, err := hearth.ParseSandboxID(*p.SandboxID)
		if err != nil {
			return nil, err
		}
		f.Sandbox = id
	}
	if p.Name != nil {
		ref, err := snapshotRef(team, "name", *p.Name)
		if err != nil {
			return nil, err
		}
		f.Alias, f.Tag, _ = strings.Cut(ref, ":")
	}
	list, next, err := s.sandboxes.Snapshots(ctx, f, store.Page{Limit: int(or(p.Limit, pageSize)), Cursor: or(p.NextToken, "")})
	if err != nil {
		return nil, cursorError(err, p.NextToken)
	}
	out := rest.ListSnapshots200JSONResponse{Body: []rest.SnapshotInfo{}}
	out.Headers.XNextToken = some(next)
	for _, snap := range list {
		out.Body = append(out.Body, toSnapshot(team, snap))
	}
	return out, nil
}

// ForkSandbox makes sandboxes that begin as another one is.
func (s *server) ForkSandbox(ctx context.Context, req rest.ForkSandboxRequestObject) (rest.ForkSandboxResponseObject, error) {
	id, err := hearth.ParseSandboxID(req.SandboxID)
	if err != nil {
		return nil, err
	}
	b := or(req.Body, rest.SandboxForkRequest{})
	timeout := defaultFork
	if b.Timeout != nil {
		timeout = seconds(*b.Timeout)
	}
	forks, err := s.sandboxes.Fork(ctx, teamOf(ctx), id, timeout, int(or(b.Count, 1)))
	if err != nil {
		return nil, err
	}
	out := rest.ForkSandbox201JSONResponse{}
	for _, f := range forks {
		out = append(out, s.toFork(ctx, f))
	}
	return out, nil
}

func (s *server) toFork(ctx context.Context, f control.Forked) rest.SandboxForkResult {
	if f.Err == nil {
		return rest.SandboxForkResult{Sandbox: some(s.toSandbox(f.Sandbox))}
	}
	status := statusOf(kindOf(f.Err))
	s.log.Warn("a fork did not start", "status", status, "err", f.Err)
	return rest.SandboxForkResult{Error: &rest.Error{
		Code: int32(status), Message: messageOf(f.Err, status, recordOf(ctx).id), ErrorCode: some(errorCode("forkSandbox", status)),
	}}
}

// RollbackSandbox takes a sandbox back to a snapshot of its line.
func (s *server) RollbackSandbox(ctx context.Context, req rest.RollbackSandboxRequestObject) (rest.RollbackSandboxResponseObject, error) {
	id, err := hearth.ParseSandboxID(req.SandboxID)
	if err != nil {
		return nil, err
	}
	var sb *hearth.Sandbox
	switch b := req.Body; {
	case (b.SnapshotID == nil) == (b.Step == nil):
		err = hearth.Errorf(hearth.InvalidArgument, "body must have either snapshotID or step")
	case b.Step != nil:
		sb, err = s.sandboxes.RollbackTo(ctx, teamOf(ctx), id, *b.Step)
	default:
		var ref string
		if ref, err = snapshotRef(callerOf(ctx).team, "snapshotID", *b.SnapshotID); err == nil {
			sb, err = s.sandboxes.Rollback(ctx, teamOf(ctx), id, ref)
		}
	}
	if err != nil {
		return nil, err
	}
	return rest.RollbackSandbox200JSONResponse{SandboxJSONResponse: rest.SandboxJSONResponse(s.toSandbox(sb))}, nil
}

// SandboxTree shows what shares a line with a sandbox.
func (s *server) SandboxTree(ctx context.Context, req rest.SandboxTreeRequestObject) (rest.SandboxTreeResponseObject, error) {
	id, err := hearth.ParseSandboxID(req.SandboxID)
	if err != nil {
		return nil, err
	}
	t, err := s.sandboxes.Tree(ctx, teamOf(ctx), id)
	if err != nil {
		return nil, err
	}
	out := rest.SandboxTree200JSONResponse{Snapshots: []rest.TreeSnapshot{}, Sandboxes: []rest.TreeSandbox{}}
	for _, snap := range t.Snapshots {
		row := rest.TreeSnapshot{
			ID: string(snap.ID), SandboxID: string(snap.Sandbox), Parent: some(string(snap.After)), Kind: string(snap.Kind),
			Usable: snap.Status == hearth.SnapshotReady, CreatedAt: snap.Created.UTC(),
			Bytes: snap.Bytes(), Step: some(snap.Step), Label: some(snap.Label),
		}
		if snap.Alias != "" {
			row.Name = some(snap.Alias + ":" + snap.Tag)
		}
		if w, known := t.Weights[snap.ID]; known {
			row.WholeBytes, row.AddedBytes = &w.Whole, &w.Added
		}
		out.Snapshots = append(out.Snapshots, row)
	}
	for _, sb := range t.Sandboxes {
		state, _ := toState(sb.State)
		out.Sandboxes = append(out.Sandboxes, rest.TreeSandbox{SandboxID: string(sb.ID), Head: some(string(sb.Head)), State: state})
	}
	return out, nil
}
