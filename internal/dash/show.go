package dash

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/store"
)

// Bounds of what one page shows.
const (
	pageSize      = 50
	mostSnapshots = 20
	usageAge      = time.Minute // older samples say nothing of now
)

// page is what every template gets.
type page struct {
	Root string
	Team string // name of who has signed in; empty: nobody
	Body any
}

// entry is the page on which one signs in.
type entry struct{ Problem string }

// failure is an error's page.
type failure struct {
	Status        int
	Name, Message string
	Request       string
}

// listed is the page of a team's sandboxes.
type listed struct {
	Running int
	Later   bool // it is not the first page
	Next    string
	Rows    []row
}

// row is a sandbox in the list, and the first part of its own page.
type row struct {
	ID, Template, State, Driver, Isolation string
	VCPUs, MemoryMiB, DiskMiB              int
	Started, Ends                          string
}

// detail is a sandbox's own page.
type detail struct {
	row
	TemplateID, Created              string
	Network, Allowed, Denied         string
	AtTimeout, Idle, History, Memory string
	AutoResume, PrivatePorts         string
	Metadata                         []pair
	Usage                            *usage
	Snapshots                        []snapshot
	MoreSnapshots                    bool
}

type pair struct{ Name, Value string }

// usage is the newest sample of what a sandbox uses.
type usage struct{ At, CPU, Memory, Disk string }

type snapshot struct{ ID, Name, Taken, Size string }

// list shows one page of the team's sandboxes, newest first: those that the API
// lists, in its order and with its tokens.
func (s *site) list(v *visit) error {
	next, err := nextToken(v.r.URL.RawQuery)
	if err != nil {
		return err
	}
	f := store.SandboxFilter{Team: v.team.ID, States: []hearth.State{
		hearth.Running, hearth.Reverting, hearth.Pausing, hearth.Paused, hearth.Resuming,
	}}
	found, after, err := s.Sandboxes.List(v.r.Context(), f, store.Page{Limit: pageSize, Cursor: next})
	if err != nil {
		return err
	}
	f.States = []hearth.State{hearth.Running}
	running, err := s.Sandboxes.Count(v.r.Context(), f)
	if err != nil {
		return err
	}
	l := listed{Running: running, Later: next != "", Next: after}
	for _, sb := range found {
		l.Rows = append(l.Rows, toRow(sb))
	}
	return s.render(v, http.StatusOK, "list", l)
}

// maxToken is longer than any page token; what they hold is the store's affair.
const maxToken = 300

// nextToken reads which page is asked for; empty is the first.
func nextToken(query string) (string, error) {
	bad := hearth.Errorf(hearth.InvalidArgument, "The address names no page: next must be a token that the list gave")
	values, err := url.ParseQuery(query)
	if err != nil || len(values["next"]) > 1 {
		return "", bad
	}
	token := values.Get("next")
	if len(token) > maxToken || strings.Trim(token, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=") != "" {
		return "", bad
	}
	return token, nil
}

// one shows a sandbox.
func (s *site) one(v *visit, text string) error {
	id, err := hearth.ParseSandboxID(text)
	if err != nil {
		return err
	}
	sb, err := s.Sandboxes.Sandbox(v.r.Context(), v.team.ID, id)
	if err != nil {
		return err
	}
	d := toDetail(sb)
	if d.Usage, err = s.usage(v.r.Context(), sb); err != nil {
		return err
	}
	f := store.SnapshotFilter{Team: v.team.ID, Sandbox: sb.ID}
	snaps, more, err := s.Sandboxes.Snapshots(v.r.Context(), f, store.Page{Limit: mostSnapshots})
	if err != nil {
		return err
	}
	d.MoreSnapshots = more != ""
	for _, snap := range snaps {
		d.Snapshots = append(d.Snapshots, toSnapshot(snap))
	}
	return s.render(v, http.StatusOK, "one", d)
}

// usage is the newest sample of a sandbox, nil if there is none of late.
func (s *site) usage(ctx context.Context, sb *hearth.Sandbox) (*usage, error) {
	samples, err := s.Sandboxes.Metrics(ctx, sb.Team, sb.ID, time.Now().Add(-usageAge), time.Time{})
	if err != nil || len(samples) == 0 {
		return nil, err
	}
	return toUsage(samples[len(samples)-1]), nil
}

func toRow(sb *hearth.Sandbox) row {
	r := row{
		ID: string(sb.ID), Template: sb.Alias, State: string(sb.State), Driver: sb.Driver,
		VCPUs: sb.Resources.VCPUs, MemoryMiB: sb.Resources.MemoryMiB, DiskMiB: sb.Resources.DiskMiB,
		Started: toTime(sb.StartedAt), Ends: toTime(sb.EndsAt),
	}
	if r.Template == "" {
		r.Template = string(sb.Template)
	}
	if sb.Isolation != "" { // nothing before it has run
		r.Isolation = sb.Isolation.Words()
	}
	if sb.State == hearth.Paused {
		r.Ends = "paused since " + r.Ends
	}
	return r
}

func toDetail(sb *hearth.Sandbox) detail {
	d := detail{
		row: toRow(sb), TemplateID: string(sb.Template), Created: toTime(sb.CreatedAt),
		Network: "allowed", Allowed: strings.Join(sb.Network.AllowOut, ", "), Denied: strings.Join(sb.Network.DenyOut, ", "),
		AtTimeout: "killed", Idle: "never", History: "none", Memory: "kept",
		AutoResume: yesNo(sb.AutoResume), PrivatePorts: yesNo(sb.Network.PrivateIngress),
	}
	if sb.Network.AllowInternet != nil && !*sb.Network.AllowInternet {
		d.Network = "refused"
	}
	if sb.OnTimeout == hearth.PauseOnTimeout {
		d.AtTimeout = "paused"
	}
	if sb.Lifecycle.PauseFiles {
		d.Memory = "dropped: files alone are kept"
	}
	if sb.Lifecycle.Idle > 0 {
		d.Idle = "after " + sb.Lifecycle.Idle.String()
	}
	if sb.Lifecycle.History > 0 {
		d.History = fmt.Sprintf("within %s; %d steps so far", toSize(sb.Lifecycle.History), sb.Lifecycle.Steps)
	}
	for _, name := range slices.Sorted(maps.Keys(sb.Metadata)) {
		d.Metadata = append(d.Metadata, pair{name, sb.Metadata[name]})
	}
	return d
}

func toUsage(u node.Usage) *usage {
	return &usage{
		At: toTime(u.At), CPU: fmt.Sprintf("%.1f %% of one CPU, of %d", u.CPUPct, u.VCPUs),
		Memory: toSize(u.Memory) + " of " + toSize(u.MemoryMax), Disk: toSize(u.Disk) + " of " + toSize(u.DiskMax),
	}
}

func toSnapshot(s *hearth.Snapshot) snapshot {
	out := snapshot{ID: string(s.ID), Taken: toTime(s.Created), Size: toSize(s.Bytes())}
	if s.Alias != "" {
		out.Name = s.Alias + ":" + s.Tag
	}
	return out
}

func toTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.DateTime) + " UTC"
}

func toSize(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
