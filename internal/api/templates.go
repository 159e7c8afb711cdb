package api

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"hearth/internal/gen/rest"
	"hearth/internal/hearth"
	"hearth/internal/store"
)

// maxBuildLog bounds how many entries one search through a build's log reads.
const maxBuildLog = 100_000

// badReference refuses text as the name of a template.
func badReference(text string) error {
	return hearth.Errorf(hearth.InvalidArgument, "Invalid template reference: %s is not %s", shown(text), referenceForm)
}

// referenceForm is what names of templates and of snapshots look like.
const referenceForm = "[team/]name[:tag] in letters, digits, - and _ (the tag may have . too)"

// templateName reduces "[namespace/]alias[:tag]" to the name under which the
// store knows it. The caller's own namespace and the tag "default" say nothing.
func templateName(team *hearth.Team, text string) (string, error) {
	name := strings.ToLower(strings.TrimSpace(text))
	bad := badReference(text)
	name, tag, tagged := strings.Cut(name, ":")
	if tagged && !onlyOf(tag, "-_.") {
		return "", bad
	}
	space, alias, spaced := strings.Cut(name, "/")
	if !spaced {
		space, alias = "", name
	}
	if !onlyOf(alias, "-_") || spaced && !onlyOf(space, "-_") {
		return "", bad
	}
	if tagged && tag != "default" {
		return "", hearth.Errorf(hearth.NotFound, "tag '%s' does not exist for template '%s'", shown(tag), shown(name))
	}
	if spaced && space != team.Slug {
		return space + "/" + alias, nil
	}
	return alias, nil
}

// onlyOf reports whether s is not empty and made of [a-z0-9] and extra.
func onlyOf(s, extra string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte(extra, c) < 0 {
			return false
		}
	}
	return s != ""
}

// visibleTemplate finds a template by ID or name among the caller's own and the
// public ones.
func (s *server) visibleTemplate(ctx context.Context, text string) (*hearth.Template, error) {
	team := callerOf(ctx).team
	name, err := templateName(team, text)
	if err != nil {
		return nil, err
	}
	t, err := s.templates.TemplateByAlias(ctx, team.ID, name)
	if kindOf(err) != hearth.NotFound || err == nil {
		return t, err
	}
	t, err = s.templates.Template(ctx, hearth.TemplateID(name))
	if err == nil && (t.Team == team.ID || t.Public) {
		return t, nil
	}
	if err != nil && kindOf(err) != hearth.NotFound {
		return nil, err
	}
	t, _, err = s.templates.ResolveTemplate(ctx, team.ID, name)
	if k := kindOf(err); err != nil && (k == hearth.NotFound || k == hearth.FailedPrecondition) {
		return nil, hearth.Wrap(hearth.NotFound, err, "template '%s' not found", shown(text))
	}
	return t, err
}

// ownTemplate is visibleTemplate that refuses those of others.
func (s *server) ownTemplate(ctx context.Context, text string) (*hearth.Template, error) {
	t, err := s.visibleTemplate(ctx, text)
	if err == nil && t.Team != teamOf(ctx) {
		return nil, hearth.Errorf(hearth.PermissionDenied, "template '%s' belongs to another team", shown(text))
	}
	return t, err
}

func checkTeam(ctx context.Context, asked *string) error {
	if t := or(asked, ""); t != "" && t != string(teamOf(ctx)) {
		return hearth.Errorf(hearth.PermissionDenied, "teamID is not the team of the API key")
	}
	return nil
}

// ListAllTemplates lists the team's templates without pages.
func (s *server) ListAllTemplates(ctx context.Context, req rest.ListAllTemplatesRequestObject) (rest.ListAllTemplatesResponseObject, error) {
	if err := checkTeam(ctx, req.Params.TeamID); err != nil {
		return nil, err
	}
	out := rest.ListAllTemplates200JSONResponse{}
	for page := (store.Page{Limit: pageSize}); len(out) < mostUnpaged; {
		list, next, err := s.templatePage(ctx, page)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
		if page.Cursor = next; next == "" {
			break
		}
	}
	return out, nil
}

// ListTemplates lists the team's templates by page.
func (s *server) ListTemplates(ctx context.Context, req rest.ListTemplatesRequestObject) (rest.ListTemplatesResponseObject, error) {
	p := req.Params
	if err := checkTeam(ctx, p.TeamID); err != nil {
		return nil, err
	}
	list, next, err := s.templatePage(ctx, store.Page{Limit: int(or(p.Limit, pageSize)), Cursor: or(p.NextToken, "")})
	if err != nil {
		return nil, cursorError(err, p.NextToken)
	}
	return rest.ListTemplates200JSONResponse{
		Body: list, Headers: rest.ListTemplates200ResponseHeaders{XNextToken: some(next)},
	}, nil
}

func (s *server) templatePage(ctx context.Context, p store.Page) ([]rest.Template, string, error) {
	team := callerOf(ctx).team
	list, next, err := s.templates.ListTemplates(ctx, team.ID, p)
	if err != nil {
		return nil, "", err
	}
	out := make([]rest.Template, 0, len(list))
	for _, t := range list {
		made, err := s.templates.ListBuilds(ctx, t.ID)
		if err != nil {
			return nil, "", err
		}
		out = append(out, toTemplate(team, t, made))
	}
	return out, next, nil
}

// GetTemplate describes a template with one page of its builds.
func (s *server) GetTemplate(ctx context.Context, req rest.GetTemplateRequestObject) (rest.GetTemplateResponseObject, error) {
	t, err := s.ownTemplate(ctx, req.TemplateID)
	if err != nil {
		return nil, err
	}
	made, err := s.templates.ListBuilds(ctx, t.ID)
	if err != nil {
		return nil, err
	}
	from := 0
	if token := or(req.Params.NextToken, ""); token != "" {
		if from, err = strconv.Atoi(token); err != nil || from < 0 {
			return nil, store.BadCursor()
		}
	}
	from = min(from, len(made))
	to := min(from+int(or(req.Params.Limit, pageSize)), len(made))
	var out rest.GetTemplate200JSONResponse
	out.Body = toTemplateWithBuilds(toTemplate(callerOf(ctx).team, t, made), made[from:to])
	if to < len(made) {
		out.Headers.XNextToken = some(strconv.Itoa(to))
	}
	return out, nil
}

// TemplateByAlias says whether a name is taken.
func (s *server) TemplateByAlias(ctx context.Context, req rest.TemplateByAliasRequestObject) (rest.TemplateByAliasResponseObject, error) {
	t, err := s.visibleTemplate(ctx, req.Alias)
	if err != nil {
		return nil, err
	}
	return rest.TemplateByAlias200JSONResponse{TemplateID: string(t.ID), Public: t.Public}, nil
}

// DeleteTemplate deletes a template that no sandbox and no snapshot uses, or a
// snapshot.
func (s *server) DeleteTemplate(ctx context.Context, req rest.DeleteTemplateRequestObject) (rest.DeleteTemplateResponseObject, error) {
	t, err := s.ownTemplate(ctx, req.TemplateID)
	if err != nil && kindOf(err) == hearth.NotFound {
		if ref, rerr := snapshotRef(callerOf(ctx).team, "templateID", req.TemplateID); rerr == nil {
			serr := s.sandboxes.DeleteSnapshot(ctx, teamOf(ctx), ref)
			if serr == nil {
				return rest.DeleteTemplate204Response{}, nil
			}
			if kindOf(serr) != hearth.NotFound {
				return nil, serr
			}
		}
	}
	if err != nil {
		return nil, err
	}
	n, err := s.sandboxes.Count(ctx, store.SandboxFilter{Template: t.ID, States: []hearth.State{
		hearth.Creating, hearth.Running, hearth.Pausing, hearth.Paused, hearth.Resuming, hearth.Reverting, hearth.Stopping,
	}})
	if err != nil {
		return nil, err
	}
	if n > 0 {
		return nil, hearth.Errorf(hearth.InvalidArgument,
			"cannot delete template '%s' because there are running sandboxes using it (%d running or paused)", t.ID, n)
	}
	list, _, err := s.sandboxes.Snapshots(ctx, store.SnapshotFilter{Team: t.Team, Template: t.ID}, store.Page{Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(list) > 0 {
		return nil, hearth.Errorf(hearth.InvalidArgument, "cannot delete template '%s' because there are snapshots of its sandboxes, such as '%s'", t.ID, list[0].ID)
	}
	if err := s.templates.DeleteTemplate(ctx, t.ID); err != nil {
		return nil, err
	}
	return rest.DeleteTemplate204Response{}, nil
}

// build finds a build of one of the caller's templates.
func (s *server) build(ctx context.Context, template, id string) (*hearth.Build, error) {
	t, err := s.ownTemplate(ctx, template)
	if err != nil {
		return nil, err
	}
	b, err := s.templates.Build(ctx, hearth.BuildID(id))
	if err != nil && kindOf(err) != hearth.NotFound {
		return nil, err
	}
	if err != nil || b.Template != t.ID {
		return nil, hearth.Errorf(hearth.InvalidArgument, "Build '%s' not found", shown(id))
	}
	return b, nil
}

// BuildStatus says how far a build is and returns the log from an offset on.
func (s *server) BuildStatus(ctx context.Context, req rest.BuildStatusRequestObject) (rest.BuildStatusResponseObject, error) {
	b, err := s.build(ctx, req.TemplateID, req.BuildID)
	if err != nil {
		return nil, err
	}
	p := req.Params
	out := rest.BuildStatus200JSONResponse{
		TemplateID: string(b.Template), BuildID: string(b.ID), Status: rest.BuildStatus(b.Status),
		Logs:       []string{},
		LogEntries: toEntries(s.logs(b.ID, int(or(p.LogsOffset, 0)), int(or(p.Limit, pageSize))), or(p.Level, "debug")),
	}
	if b.Status == hearth.BuildError {
		out.Reason = &rest.BuildReason{Message: b.Reason}
	}
	return out, nil
}

func (s *server) logs(id hearth.BuildID, offset, limit int) []LogEntry {
	if s.builds == nil || limit == 0 {
		return nil
	}
	return s.builds.Logs(id, offset, limit)
}

// BuildLogs returns the log from a moment on, in either direction.
func (s *server) BuildLogs(ctx context.Context, req rest.BuildLogsRequestObject) (rest.BuildLogsResponseObject, error) {
	b, err := s.build(ctx, req.TemplateID, req.BuildID)
	if err != nil {
		return nil, err
	}
	p := req.Params
	all := toEntries(s.logs(b.ID, 0, maxBuildLog), or(p.Level, "debug"))
	backward := or(p.Direction, "backward") == "backward"
	if p.Cursor != nil {
		moment := time.UnixMilli(*p.Cursor)
		all = slices.DeleteFunc(all, func(e rest.BuildLogEntry) bool { return backward != e.Timestamp.Before(moment) })
	}
	if backward {
		slices.Reverse(all)
	}
	return rest.BuildLogs200JSONResponse{Logs: all[:min(len(all), int(or(p.Limit, pageSize)))]}, nil
}
