package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// CreateOptions describe a sandbox to make. The zero value is the template
// "base", for the server's default time.
type CreateOptions struct {
	Template   string        // name or ID; empty means "base"
	Timeout    time.Duration // rounded up to seconds; 0 is the server's default
	Metadata   map[string]string
	Env        map[string]string
	AutoPause  bool          // at the end of Timeout, pause instead of kill
	FilesOnly  bool          // that pause keeps the files alone, as PauseFiles does; not with AutoResume
	AutoResume bool          // traffic resumes it when paused
	Idle       time.Duration // without a request for so long it is paused; rounded up to seconds, 0 is never
	Network    *Network
	NoInternet bool   // nothing outside is reachable
	History    int64  // bytes that steps may occupy; negative: the server's default. 0: none are kept, see Client.History
	Driver     string // isolation technology to run on; empty is the template's, else the server's choice
}

// Network is what a sandbox may reach and who may reach it.
type Network struct {
	AllowOut      []string `json:"allowOut,omitempty"` // addresses, CIDRs, domain names
	DenyOut       []string `json:"denyOut,omitempty"`  // addresses, CIDRs
	PublicTraffic *bool    `json:"allowPublicTraffic,omitempty"`
}

// Info describes a sandbox.
type Info struct {
	ID        string            `json:"sandboxID"`
	Template  string            `json:"templateID"`
	Name      string            `json:"alias"` // under which the template was asked for
	State     string            `json:"state"` // running or paused
	StartedAt time.Time         `json:"startedAt"`
	EndAt     time.Time         `json:"endAt"`
	Timeout   int               `json:"timeout"` // seconds, as asked for at create; Info alone has it
	Metadata  map[string]string `json:"metadata"`
	VCPUs     int               `json:"cpuCount"`
	MemoryMiB int               `json:"memoryMB"`
	DiskMiB   int               `json:"diskSizeMB"`
	Driver    string            `json:"driver"`    // isolation technology that it runs on
	Isolation string            `json:"isolation"` // what that puts between the sandbox and the host, in words
	Lifecycle Lifecycle         `json:"lifecycle"` // Info alone has it
}

// Lifecycle is what happens to a sandbox by itself.
type Lifecycle struct {
	AutoResume bool   `json:"autoResume"` // traffic resumes it when paused
	OnTimeout  string `json:"onTimeout"`  // kill or pause
}

// Metric is one sample of what a sandbox used. Memory and disk in bytes.
type Metric struct {
	At        time.Time `json:"timestamp"`
	VCPUs     int       `json:"cpuCount"`
	CPUPct    float64   `json:"cpuUsedPct"`
	Memory    int64     `json:"memUsed"`
	MemoryMax int64     `json:"memTotal"`
	Disk      int64     `json:"diskUsed"`
	DiskMax   int64     `json:"diskTotal"`
}

// Template is something to make sandboxes from.
type Template struct {
	ID        string    `json:"templateID"`
	Build     string    `json:"buildID"`
	Aliases   []string  `json:"aliases"`
	Public    bool      `json:"public"`
	Status    string    `json:"buildStatus"` // waiting, building, ready or error
	VCPUs     int       `json:"cpuCount"`
	MemoryMiB int       `json:"memoryMB"`
	CreatedAt time.Time `json:"createdAt"`
	Driver    string    `json:"driver"`      // what its sandboxes run on unasked; empty: the server's choice
	Warm      []string  `json:"warmDrivers"` // drivers on which its sandboxes need not boot
}

// Health returns nil when the server takes work.
func (c *Client) Health(ctx context.Context) error {
	_, err := c.call(ctx, http.MethodGet, "/health", nil, nil)
	return err
}

// Create makes a sandbox and returns when it answers.
func (c *Client) Create(ctx context.Context, o CreateOptions) (*Sandbox, error) {
	body := map[string]any{"templateID": o.Template}
	if o.Template == "" {
		body["templateID"] = "base"
	}
	if o.Timeout > 0 {
		body["timeout"] = wholeSeconds(o.Timeout)
	}
	if o.Metadata != nil {
		body["metadata"] = o.Metadata
	}
	if o.Env != nil {
		body["envVars"] = o.Env
	}
	if o.AutoPause {
		body["autoPause"] = true
	}
	if o.FilesOnly {
		body["autoPauseMemory"] = false
	}
	if o.AutoResume {
		body["autoResume"] = map[string]bool{"enabled": true}
	}
	if o.Idle > 0 {
		body["idleTimeout"] = wholeSeconds(o.Idle)
	}
	if o.History > 0 {
		body["history"] = map[string]int64{"maxBytes": o.History}
	} else if o.History < 0 {
		body["history"] = map[string]int64{}
	}
	if o.Network != nil {
		body["network"] = o.Network
	}
	if o.NoInternet {
		body["allow_internet_access"] = false
	}
	if o.Driver != "" {
		body["driver"] = o.Driver
	}
	var out created
	header, err := c.call(ctx, http.MethodPost, "/v2/sandboxes", body, &out)
	if err != nil {
		return nil, err
	}
	return newSandbox(c, out, header), nil
}

// Connect returns a sandbox that exists, resuming it when it is paused, and
// lets it live for at least timeout from now; 0 is the server's default.
func (c *Client) Connect(ctx context.Context, id string, timeout time.Duration) (*Sandbox, error) {
	body := map[string]any{}
	if timeout > 0 {
		body["timeout"] = wholeSeconds(timeout)
	}
	var out created
	header, err := c.call(ctx, http.MethodPost, "/v2/sandboxes/"+url.PathEscape(id)+"/connect", body, &out)
	if err != nil {
		return nil, err
	}
	return newSandbox(c, out, header), nil
}

// Info describes one sandbox.
func (c *Client) Info(ctx context.Context, id string) (*Info, error) {
	var out Info
	_, err := c.call(ctx, http.MethodGet, sandboxPath(id, ""), nil, &out)
	if err != nil {
		return nil, err
	}
	return &out, nil
}

// ListOptions select sandboxes; the zero value selects all, newest first.
type ListOptions struct {
	Metadata map[string]string // all pairs must be equal
	States   []string          // running, paused
	Template string            // ID or name
}

// List yields the sandboxes that o selects, asking for pages as it goes. An
// error ends it.
func (c *Client) List(ctx context.Context, o ListOptions) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		q := url.Values{}
		if len(o.Metadata) > 0 {
			pairs := url.Values{} // the protocol wants keys and values encoded twice
			for k, v := range o.Metadata {
				pairs.Set(url.PathEscape(k), url.PathEscape(v))
			}
			q.Set("metadata", pairs.Encode())
		}
		if len(o.States) > 0 {
			q.Set("state", strings.Join(o.States, ","))
		}
		if o.Template != "" {
			q.Set("template", o.Template)
		}
		for {
			var page []Info
			h, err := c.call(ctx, http.MethodGet, "/v2/sandboxes?"+q.Encode(), nil, &page)
			if err != nil {
				yield(Info{}, err)
				return
			}
			for _, i := range page {
				if !yield(i, nil) {
					return
				}
			}
			next := h.Get("X-Next-Token")
			if next == "" {
				return
			}
			q.Set("nextToken", next)
		}
	}
}

// Kill ends a sandbox, running or paused. NotFound(err) is true when there is none.
func (c *Client) Kill(ctx context.Context, id string) error {
	_, err := c.call(ctx, http.MethodDelete, sandboxPath(id, ""), nil, nil)
	return err
}

// Pause writes a sandbox's state away and stops its machine.
func (c *Client) Pause(ctx context.Context, id string) error {
	_, err := c.call(ctx, http.MethodPost, sandboxPath(id, "/pause"), map[string]any{}, nil)
	return err
}

// PauseFiles writes a sandbox's files away and drops its memory: the next Connect
// boots it, with the files as they are now.
func (c *Client) PauseFiles(ctx context.Context, id string) error {
	_, err := c.call(ctx, http.MethodPost, sandboxPath(id, "/pause"), map[string]any{"memory": false}, nil)
	return err
}

// SetTimeout lets a sandbox end d from now, rounded up to seconds.
func (c *Client) SetTimeout(ctx context.Context, id string, d time.Duration) error {
	_, err := c.call(ctx, http.MethodPost, sandboxPath(id, "/timeout"), map[string]any{"timeout": wholeSeconds(d)}, nil)
	return err
}

// Metrics returns what a sandbox used since it started, oldest first.
func (c *Client) Metrics(ctx context.Context, id string) ([]Metric, error) {
	var out []Metric
	_, err := c.call(ctx, http.MethodGet, sandboxPath(id, "/metrics"), nil, &out)
	return out, err
}

// Templates lists the team's templates.
func (c *Client) Templates(ctx context.Context) ([]Template, error) {
	var out []Template
	_, err := c.call(ctx, http.MethodGet, "/templates", nil, &out)
	return out, err
}

// DeleteTemplate deletes a template that no sandbox uses.
func (c *Client) DeleteTemplate(ctx context.Context, nameOrID string) error {
	_, err := c.call(ctx, http.MethodDelete, "/templates/"+url.PathEscape(nameOrID), nil, nil)
	return err
}

// LogEntry is one line of a build's log.
type LogEntry struct {
	At      time.Time `json:"timestamp"`
	Level   string    `json:"level"`
	Step    string    `json:"step"`
	Message string    `json:"message"`
}

// BuildStatus is how far a build is.
type BuildStatus struct {
	Status string     `json:"status"`     // waiting, building, ready or error
	Log    []LogEntry `json:"logEntries"` // at most 100
	Reason struct {
		Message string `json:"message"`
	} `json:"reason"`
}

// BuildStatus returns how far a build is and its log from the given entry on.
func (c *Client) BuildStatus(ctx context.Context, template, build string, from int) (*BuildStatus, error) {
	var out BuildStatus
	path := "/templates/" + url.PathEscape(template) + "/builds/" + url.PathEscape(build) + "/status?logsOffset=" + strconv.Itoa(from)
	if _, err := c.call(ctx, http.MethodGet, path, nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

func sandboxPath(id, rest string) string { return "/sandboxes/" + url.PathEscape(id) + rest }

// wholeSeconds rounds up, as the protocol counts in seconds.
func wholeSeconds(d time.Duration) int64 {
	return int64((d + time.Second - 1) / time.Second)
}
