package api

import (
	"context"
	"strconv"

	"hearth/internal/control"
	"hearth/internal/control/wish"
	"hearth/internal/gen/rest"
	"hearth/internal/hearth"
)

// historyOf is the budget that a create asks for: in its body, or in the header of
// clients that cannot say it there. 0: no history.
func historyOf(body *rest.NewHistory, header *string) (int64, error) {
	switch {
	case body != nil && header != nil:
		return 0, hearth.Errorf(hearth.InvalidArgument, "history is in the body and in the header X-Hearth-History: ask for one")
	case body != nil:
		return or(body.MaxBytes, wish.DefaultHistory), nil
	case header == nil:
		return 0, nil
	case *header == "on":
		return wish.DefaultHistory, nil
	}
	n, err := strconv.ParseInt(*header, 10, 64)
	if err != nil {
		return 0, hearth.Errorf(hearth.InvalidArgument, "X-Hearth-History must be on or a number of bytes")
	}
	if n == 0 {
		n = -1 // asked for, and too little; 0 would be no history
	}
	return n, wish.CheckHistory("X-Hearth-History", n)
}

// SandboxHistory lists a sandbox's steps.
func (s *server) SandboxHistory(ctx context.Context, req rest.SandboxHistoryRequestObject) (rest.SandboxHistoryResponseObject, error) {
	id, err := hearth.ParseSandboxID(req.SandboxID)
	if err != nil {
		return nil, err
	}
	h, err := s.sandboxes.History(ctx, teamOf(ctx), id)
	if err != nil {
		return nil, err
	}
	return rest.SandboxHistory200JSONResponse(toHistory(h)), nil
}

func toHistory(h *control.History) rest.SandboxHistory {
	out := rest.SandboxHistory{MaxBytes: h.Budget, Bytes: h.Bytes, Head: some(h.Head), Steps: []rest.HistoryStep{}}
	for _, s := range h.Steps {
		row := rest.HistoryStep{
			Step: s.Step, Parent: some(s.Parent), CreatedAt: s.Created.UTC(), Label: s.Label, Bytes: s.Bytes(),
			Kept: s.Kind == hearth.KeptSnapshot, Error: some(s.Reason),
		}
		if s.Status == hearth.SnapshotReady {
			row.SnapshotID = some(string(s.ID))
		}
		out.Steps = append(out.Steps, row)
	}
	return out
}
