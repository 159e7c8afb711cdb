package api

import (
	"maps"
	"slices"
	"strings"
	"time"

	"hearth/internal/gen/rest"
	"hearth/internal/hearth"
	"hearth/internal/node"
)

const (
	// daemonVersion is the version of E2B's in-sandbox daemon whose behaviour
	// ours has; the SDKs switch features on by it.
	daemonVersion = "0.6.13"
	// clientID is a constant that old clients want to see.
	clientID = "6532622b"
)

// some returns nil for the zero value, so that JSON leaves it out.
func some[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// or returns *p, or def when there is none.
func or[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}

// seconds turns a checked number of seconds into a duration.
func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }

func (s *server) toSandbox(sb *hearth.Sandbox) rest.Sandbox {
	out := rest.Sandbox{
		SandboxID: string(sb.ID), TemplateID: string(sb.Template), Alias: some(sb.Alias),
		ClientID: clientID, EnvdVersion: daemonVersion, Domain: some(s.domain),
	}
	if !sb.Open {
		out.EnvdAccessToken = some(s.tokens.Access(sb.ID))
	}
	if sb.Network.PrivateIngress {
		out.TrafficAccessToken = some(s.tokens.Traffic(sb.ID))
	}
	return out
}

// toState returns the public name of a state; ok is false where a sandbox is as
// good as gone.
func toState(st hearth.State) (public rest.SandboxState, ok bool) {
	switch st {
	case hearth.Creating, hearth.Running, hearth.Reverting:
		return rest.SandboxState("running"), true
	case hearth.Pausing, hearth.Paused, hearth.Resuming:
		return rest.SandboxState("paused"), true
	}
	return "", false
}

// fromStates returns the states that a public filter selects.
func fromStates(public []rest.SandboxState) []hearth.State {
	var states []hearth.State
	if len(public) == 0 || slices.Contains(public, "running") {
		states = append(states, hearth.Running, hearth.Reverting)
	}
	if len(public) == 0 || slices.Contains(public, "paused") {
		states = append(states, hearth.Pausing, hearth.Paused, hearth.Resuming)
	}
	return states
}

func toListed(sb *hearth.Sandbox) rest.ListedSandbox {
	state, _ := toState(sb.State)
	return rest.ListedSandbox{
		SandboxID: string(sb.ID), TemplateID: string(sb.Template), Alias: some(sb.Alias),
		ClientID: clientID, EnvdVersion: daemonVersion, State: state,
		StartedAt: sb.StartedAt.UTC(), EndAt: sb.EndsAt.UTC(), Metadata: toMetadata(sb.Metadata),
		CPUCount: sb.Resources.VCPUs, MemoryMB: sb.Resources.MemoryMiB, DiskSizeMB: sb.Resources.DiskMiB,
		Driver: some(sb.Driver), Isolation: toIsolation(sb.Isolation),
	}
}

// toIsolation says it in words; nothing before the sandbox has run.
func toIsolation(i hearth.Isolation) *string {
	if i == "" {
		return nil
	}
	return some(i.Words())
}

func (s *server) toDetail(sb *hearth.Sandbox) rest.SandboxDetail {
	l := toListed(sb)
	out := rest.SandboxDetail{
		SandboxID: l.SandboxID, TemplateID: l.TemplateID, Alias: l.Alias, ClientID: l.ClientID,
		EnvdVersion: l.EnvdVersion, State: l.State, StartedAt: l.StartedAt, EndAt: l.EndAt,
		Metadata: l.Metadata, CPUCount: l.CPUCount, MemoryMB: l.MemoryMB, DiskSizeMB: l.DiskSizeMB,
		Driver: l.Driver, Isolation: l.Isolation,
		AllowInternetAccess: sb.Network.AllowInternet,
		Network:             toNetwork(sb.Network),
		Lifecycle: rest.SandboxLifecycle{
			AutoResume: sb.AutoResume,
			OnTimeout:  rest.SandboxLifecycleOnTimeout(or(some(sb.OnTimeout), hearth.KillOnTimeout)),
		},
		Timeout: some(int32(sb.Timeout / time.Second)),
	}
	if l.State == "running" {
		out.Domain = some(s.domain)
	}
	if !sb.Open {
		out.EnvdAccessToken = some(s.tokens.Access(sb.ID))
	}
	return out
}

func toMetadata(m map[string]string) *map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	return &m
}

func toNetwork(n hearth.Network) *rest.SandboxNetworkInfo {
	out := &rest.SandboxNetworkInfo{
		AllowPublicTraffic: !n.PrivateIngress, MaskRequestHost: some(n.MaskRequestHost),
	}
	if len(n.AllowOut) > 0 {
		out.AllowOut = &n.AllowOut
	}
	if len(n.DenyOut) > 0 {
		out.DenyOut = &n.DenyOut
	}
	return out
}

func toMetric(u node.Usage) rest.SandboxMetric {
	return rest.SandboxMetric{
		Timestamp: u.At.UTC(), TimestampUnix: u.At.Unix(),
		CPUCount: u.VCPUs, CPUUsedPct: u.CPUPct,
		MemUsed: u.Memory, MemTotal: u.MemoryMax,
		DiskUsed: u.Disk, DiskTotal: u.DiskMax,
	}
}

// toTemplate takes the builds newest first; the newest speaks for a template
// that has no ready one.
func toTemplate(team *hearth.Team, t *hearth.Template, list []*hearth.Build) rest.Template {
	out := rest.Template{
		TemplateID: string(t.ID), Public: t.Public, BuildID: string(t.Build),
		Aliases: t.Aliases, Names: make([]string, 0, len(t.Aliases)),
		CreatedAt: t.CreatedAt.UTC(), UpdatedAt: t.UpdatedAt.UTC(),
		BuildCount: len(list), BuildStatus: rest.BuildStatus(hearth.BuildWaiting), EnvdVersion: daemonVersion,
	}
	if out.Aliases == nil {
		out.Aliases = []string{}
	}
	for _, a := range t.Aliases {
		if t.Team == team.ID && team.Slug != "" {
			a = team.Slug + "/" + a
		}
		out.Names = append(out.Names, a)
	}
	current := slices.IndexFunc(list, func(b *hearth.Build) bool { return b.ID == t.Build })
	if current < 0 && len(list) > 0 {
		current = 0
	}
	if current >= 0 {
		b := list[current]
		out.BuildID, out.BuildStatus = string(b.ID), rest.BuildStatus(b.Status)
		out.CPUCount, out.MemoryMB, out.DiskSizeMB = b.Resources.VCPUs, b.Resources.MemoryMiB, b.Resources.DiskMiB
		out.Driver = some(b.Driver)
		if len(b.Warm) > 0 && b.Status == hearth.BuildReady {
			warm := slices.Sorted(maps.Keys(b.Warm))
			out.WarmDrivers = &warm
		}
	}
	return out
}

func toTemplateWithBuilds(t rest.Template, list []*hearth.Build) rest.TemplateWithBuilds {
	out := rest.TemplateWithBuilds{
		TemplateID: t.TemplateID, BuildID: t.BuildID, Public: t.Public, Aliases: t.Aliases, Names: t.Names,
		CPUCount: t.CPUCount, MemoryMB: t.MemoryMB, DiskSizeMB: t.DiskSizeMB,
		CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt, BuildCount: t.BuildCount,
		BuildStatus: t.BuildStatus, EnvdVersion: t.EnvdVersion, Driver: t.Driver, WarmDrivers: t.WarmDrivers,
		Builds: make([]rest.TemplateBuild, 0, len(list)),
	}
	for _, b := range list {
		updated := b.CreatedAt
		if !b.FinishedAt.IsZero() {
			updated = b.FinishedAt
		}
		tb := rest.TemplateBuild{
			BuildID: string(b.ID), Status: rest.BuildStatus(b.Status),
			CreatedAt: b.CreatedAt.UTC(), UpdatedAt: updated.UTC(),
			CPUCount: b.Resources.VCPUs, MemoryMB: b.Resources.MemoryMiB,
			DiskSizeMB: &b.Resources.DiskMiB, EnvdVersion: some(daemonVersion),
		}
		if !b.FinishedAt.IsZero() {
			finished := b.FinishedAt.UTC()
			tb.FinishedAt = &finished
		}
		out.Builds = append(out.Builds, tb)
	}
	return out
}

// toEntries keeps the entries of at least the given level.
func toEntries(list []LogEntry, least rest.LogLevel) []rest.BuildLogEntry {
	out := make([]rest.BuildLogEntry, 0, len(list))
	for _, e := range list {
		level := rest.LogLevel(strings.ToLower(e.Level))
		if !level.Valid() {
			level = "info"
		}
		if severity(level) >= severity(least) {
			out = append(out, rest.BuildLogEntry{
				Timestamp: e.At.UTC(), Level: level, Step: some(e.Step), Message: e.Message,
			})
		}
	}
	return out
}

func severity(l rest.LogLevel) int {
	return slices.Index([]rest.LogLevel{"debug", "info", "warn", "error"}, l)
}
