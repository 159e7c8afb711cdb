package api

import (
	"context"
	"net/url"
	"strings"
	"time"

	"hearth/internal/api/describe"
	"hearth/internal/api/strict"
	"hearth/internal/gen/rest"
	"hearth/internal/hearth"
	"hearth/internal/store"
)

const (
	pageSize = 100
	// mostUnpaged bounds the lists that have no pages.
	mostUnpaged = 1000
)

// ListRunningSandboxes is the list of very old clients, without pages.
func (s *server) ListRunningSandboxes(ctx context.Context, req rest.ListRunningSandboxesRequestObject) (rest.ListRunningSandboxesResponseObject, error) {
	metadata, err := parseMetadataFilter(or(req.Params.Metadata, ""))
	if err != nil {
		return nil, err
	}
	f := store.SandboxFilter{Team: teamOf(ctx), States: []hearth.State{hearth.Running}, Metadata: metadata}
	out := rest.ListRunningSandboxes200JSONResponse{}
	for page := (store.Page{Limit: pageSize}); len(out) < mostUnpaged; {
		list, next, err := s.sandboxes.List(ctx, f, page)
		if err != nil {
			return nil, err
		}
		for _, sb := range list {
			out = append(out, toListed(sb))
		}
		if page.Cursor = next; next == "" {
			break
		}
	}
	return out, nil
}

// ListSandboxes returns one page of the team's sandboxes.
func (s *server) ListSandboxes(ctx context.Context, req rest.ListSandboxesRequestObject) (rest.ListSandboxesResponseObject, error) {
	p := req.Params
	metadata, err := parseMetadataFilter(or(p.Metadata, ""))
	if err != nil {
		return nil, err
	}
	f := store.SandboxFilter{
		Team: teamOf(ctx), Metadata: metadata, States: fromStates(or(p.State, nil)),
		StartedAfter: or(p.StartedAfter, time.Time{}), OldestFirst: or(p.Order, "desc") == "asc",
	}
	empty := rest.ListSandboxes200JSONResponse{Body: []rest.ListedSandbox{}}
	if wanted := or(p.Template, ""); wanted != "" {
		t, err := s.visibleTemplate(ctx, wanted)
		switch kindOf(err) {
		case hearth.NotFound, hearth.InvalidArgument:
			if err != nil {
				return empty, nil
			}
		}
		if err != nil {
			return nil, err
		}
		f.Template = t.ID
	}
	list, next, err := s.sandboxes.List(ctx, f, store.Page{Limit: int(or(p.Limit, pageSize)), Cursor: or(p.NextToken, "")})
	if err != nil {
		return nil, cursorError(err, p.NextToken)
	}
	out := empty
	out.Headers.XNextToken = some(next)
	for _, sb := range list {
		out.Body = append(out.Body, toListed(sb))
	}
	if f.States[0] == hearth.Running {
		f.States = []hearth.State{hearth.Running}
		n, err := s.sandboxes.Count(ctx, f)
		if err != nil {
			return nil, err
		}
		out.Headers.XTotalRunning = &n
	}
	return out, nil
}

// cursorError gives a refused cursor the text that clients know.
func cursorError(err error, cursor *string) error {
	if cursor != nil && kindOf(err) == hearth.InvalidArgument {
		return store.BadCursor()
	}
	return err
}

// parseMetadataFilter reads "k=v&k2=v2", whose keys and values the SDKs encode
// twice: once on their own, and once more as parts of this query string.
func parseMetadataFilter(text string) (map[string]string, error) {
	if text == "" {
		return nil, nil
	}
	pairs, err := url.ParseQuery(text)
	if err != nil {
		return nil, hearth.Wrap(hearth.InvalidArgument, err, "metadata must be percent-encoded pairs like k=v&k2=v2")
	}
	filter := make(map[string]string, len(pairs))
	for k, vs := range pairs {
		key, err := url.PathUnescape(k)
		if err != nil {
			return nil, hearth.Wrap(hearth.InvalidArgument, err, "metadata has a key that is not percent-encoded")
		}
		if _, twice := filter[key]; twice || len(vs) > 1 {
			return nil, describe.Wrong(strict.Join("metadata", key), "may appear only once")
		}
		if filter[key], err = url.PathUnescape(vs[0]); err != nil {
			return nil, hearth.Wrap(hearth.InvalidArgument, err, "metadata has a value that is not percent-encoded")
		}
		if !clean(key) || !clean(filter[key]) {
			return nil, describe.Wrong(strict.Join("metadata", key), "must be UTF-8 without NUL characters")
		}
	}
	return filter, nil
}

// clean reports whether s could be stored as metadata at all.
func clean(s string) bool {
	return strings.ToValidUTF8(s, "") == s && !strings.ContainsRune(s, 0)
}

// SandboxMetrics returns what a sandbox used over time.
func (s *server) SandboxMetrics(ctx context.Context, req rest.SandboxMetricsRequestObject) (rest.SandboxMetricsResponseObject, error) {
	id, err := hearth.ParseSandboxID(req.SandboxID)
	if err != nil {
		return nil, err
	}
	start, end := fromUnix(req.Params.Start), fromUnix(req.Params.End)
	if !start.IsZero() && !end.IsZero() && start.After(end) {
		return nil, hearth.Errorf(hearth.InvalidArgument, "start must not be after end")
	}
	samples, err := s.sandboxes.Metrics(ctx, teamOf(ctx), id, start, end)
	if err != nil {
		return nil, err
	}
	out := rest.SandboxMetrics200JSONResponse{}
	for _, u := range samples {
		out = append(out, toMetric(u))
	}
	return out, nil
}

// fromUnix returns the zero time for what is absent.
func fromUnix(seconds *int64) time.Time {
	if seconds == nil {
		return time.Time{}
	}
	return time.Unix(*seconds, 0)
}

// LatestMetrics returns the newest sample of each sandbox that runs.
func (s *server) LatestMetrics(ctx context.Context, req rest.LatestMetricsRequestObject) (rest.LatestMetricsResponseObject, error) {
	out := rest.LatestMetrics200JSONResponse{Sandboxes: map[string]rest.SandboxMetric{}}
	for _, text := range req.Params.SandboxIds {
		id, err := hearth.ParseSandboxID(text)
		if err != nil {
			return nil, err
		}
		samples, err := s.sandboxes.Metrics(ctx, teamOf(ctx), id, time.Now().Add(-time.Minute), time.Time{})
		switch {
		case err != nil && kindOf(err) != hearth.NotFound:
			return nil, err
		case len(samples) > 0:
			out.Sandboxes[string(id)] = toMetric(samples[len(samples)-1])
		}
	}
	return out, nil
}
