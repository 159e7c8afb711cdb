package api

import (
	"context"
	"time"

	"hearth/internal/api/repeat"
	"hearth/internal/control"
	"hearth/internal/gen/rest"
	"hearth/internal/hearth"
)

// The timeouts of requests that name none.
const (
	defaultTimeoutV1 = 15 * time.Second
	defaultTimeoutV2 = 300 * time.Second
	defaultRefresh   = 15 * time.Second
)

// CreateSandbox starts a sandbox for clients up to e2b 2.50.
func (s *server) CreateSandbox(ctx context.Context, req rest.CreateSandboxRequestObject) (rest.CreateSandboxResponseObject, error) {
	b := req.Body
	sb, err := s.create(ctx, newSandbox{
		body: rest.NewSandboxV2{
			TemplateID: b.TemplateID, Timeout: b.Timeout, Metadata: b.Metadata, EnvVars: b.EnvVars,
			AutoPause: b.AutoPause, AutoPauseMemory: b.AutoPauseMemory, AutoResume: b.AutoResume,
			AllowInternetAccess: b.AllowInternetAccess, Network: b.Network,
			Iam: b.Iam, Mcp: b.Mcp, VolumeMounts: b.VolumeMounts, Driver: b.Driver, IdleTimeout: b.IdleTimeout, History: b.History,
		},
		timeout: defaultTimeoutV1, open: !or(b.Secure, true), key: or(req.Params.IdempotencyKey, ""),
		driver: or(req.Params.XHearthDriver, ""), history: req.Params.XHearthHistory,
	})
	if err != nil {
		return nil, err
	}
	return rest.CreateSandbox201JSONResponse{SandboxJSONResponse: rest.SandboxJSONResponse(s.toSandbox(sb))}, nil
}

// CreateSandboxV2 starts a sandbox.
func (s *server) CreateSandboxV2(ctx context.Context, req rest.CreateSandboxV2RequestObject) (rest.CreateSandboxV2ResponseObject, error) {
	sb, err := s.create(ctx, newSandbox{
		body: *req.Body, timeout: defaultTimeoutV2, key: or(req.Params.IdempotencyKey, ""),
		driver: or(req.Params.XHearthDriver, ""), history: req.Params.XHearthHistory,
	})
	if err != nil {
		return nil, err
	}
	return rest.CreateSandboxV2201JSONResponse{SandboxJSONResponse: rest.SandboxJSONResponse(s.toSandbox(sb))}, nil
}

// newSandbox is what both versions of create have in common.
type newSandbox struct {
	body    rest.NewSandboxV2
	timeout time.Duration // if the body has none
	open    bool
	key     string  // Idempotency-Key, or empty
	driver  string  // X-Hearth-Driver, or empty
	history *string // X-Hearth-History, if it was sent
}

func (s *server) create(ctx context.Context, n newSandbox) (*hearth.Sandbox, error) {
	req, err := n.request(callerOf(ctx).team)
	if err != nil {
		return nil, err
	}
	if n.key == "" {
		return s.sandboxes.Create(ctx, req)
	}
	var sb *hearth.Sandbox
	id, first, err := s.repeats.Once(ctx, repeat.Key{Team: req.Team, Key: n.key}, req, func() (hearth.SandboxID, error) {
		var err error
		if sb, err = s.sandboxes.Create(ctx, req); err != nil {
			return "", err
		}
		return sb.ID, nil
	})
	if err != nil || first {
		return sb, err
	}
	return s.sandboxes.Sandbox(ctx, req.Team, id)
}

// request turns the body into what the control plane takes.
func (n newSandbox) request(team *hearth.Team) (control.CreateRequest, error) {
	b := n.body
	req := control.CreateRequest{
		Team: team.ID, Timeout: n.timeout, OnTimeout: hearth.KillOnTimeout, Open: n.open,
		AutoResume: b.AutoResume != nil && b.AutoResume.Enabled, Driver: or(b.Driver, n.driver),
	}
	if n.driver != "" && n.driver != req.Driver {
		return req, hearth.Errorf(hearth.InvalidArgument, "driver is %q and the header X-Hearth-Driver %q: ask for one", req.Driver, n.driver)
	}
	var err error
	if req.Template, err = snapshotRef(team, "templateID", b.TemplateID); err != nil {
		return req, badReference(b.TemplateID) // as clients know it
	}
	if b.Timeout != nil {
		if req.Timeout = seconds(*b.Timeout); req.Timeout == 0 {
			return req, hearth.Errorf(hearth.InvalidArgument, "Timeout must be greater than 0")
		}
	}
	if or(b.AutoPause, false) {
		req.OnTimeout = hearth.PauseOnTimeout
		req.Lifecycle.PauseFiles = !or(b.AutoPauseMemory, true)
	}
	req.Lifecycle.Idle = seconds(or(b.IdleTimeout, 0))
	if req.Lifecycle.History, err = historyOf(b.History, n.history); err != nil {
		return req, err
	}
	if b.Metadata != nil {
		req.Metadata = *b.Metadata
	}
	if b.EnvVars != nil {
		req.Env = *b.EnvVars
	}
	if err := n.unsupported(); err != nil {
		return req, err
	}
	req.Network, err = createNetwork(b.AllowInternetAccess, b.Network)
	if err == nil && req.Network.PrivateIngress && req.Open {
		err = hearth.Errorf(hearth.InvalidArgument, "network.allowPublicTraffic=false needs secure=true")
	}
	return req, err
}

// unsupported refuses what would otherwise be silently ignored.
func (n newSandbox) unsupported() error {
	b := n.body
	switch {
	case !or(b.AutoPauseMemory, true) && !or(b.AutoPause, false):
		return hearth.Errorf(hearth.InvalidArgument, "autoPauseMemory=false only applies when autoPause is true.")
	case !or(b.AutoPauseMemory, true) && b.AutoResume != nil && b.AutoResume.Enabled:
		return hearth.Errorf(hearth.InvalidArgument, "autoPauseMemory=false and autoResume cannot be combined: traffic would find a sandbox without its processes")
	case b.Iam != nil && len(*b.Iam) > 0:
		return notYet("iam")
	case b.VolumeMounts != nil && len(*b.VolumeMounts) > 0:
		return notYet("volumeMounts")
	}
	return nil
}

func notYet(what string) error {
	return hearth.Errorf(hearth.InvalidArgument, "%s is not supported by this server yet", what)
}

// GetSandbox describes a sandbox.
func (s *server) GetSandbox(ctx context.Context, req rest.GetSandboxRequestObject) (rest.GetSandboxResponseObject, error) {
	sb, err := s.find(ctx, req.SandboxID)
	if err != nil {
		return nil, err
	}
	return rest.GetSandbox200JSONResponse(s.toDetail(sb)), nil
}

// find returns a sandbox of the caller's team that is not as good as gone.
func (s *server) find(ctx context.Context, text string) (*hearth.Sandbox, error) {
	id, err := hearth.ParseSandboxID(text)
	if err != nil {
		return nil, err
	}
	sb, err := s.sandboxes.Sandbox(ctx, teamOf(ctx), id)
	if err != nil {
		return nil, err
	}
	if _, ok := toState(sb.State); !ok {
		return nil, hearth.Errorf(hearth.NotFound, "Sandbox %q doesn't exist or you don't have access to it", id)
	}
	return sb, nil
}

// KillSandbox ends a sandbox, running or paused.
func (s *server) KillSandbox(ctx context.Context, req rest.KillSandboxRequestObject) (rest.KillSandboxResponseObject, error) {
	id, err := hearth.ParseSandboxID(req.SandboxID)
	if err == nil {
		err = s.sandboxes.Kill(ctx, teamOf(ctx), id)
	}
	if hearth.KindOf(err) == hearth.ResourceExhausted { // the server's disk: nobody has asked for too much
		err = hearth.Wrap(hearth.Unavailable, err, "%s", hearth.Shown(err))
	}
	if err != nil {
		return nil, err
	}
	return rest.KillSandbox204Response{}, nil
}

// ConnectSandbox extends or resumes for clients up to e2b 2.50.
func (s *server) ConnectSandbox(ctx context.Context, req rest.ConnectSandboxRequestObject) (rest.ConnectSandboxResponseObject, error) {
	out, resumed, err := s.connect(ctx, req.SandboxID, seconds(req.Body.Timeout), req.Body.Memory)
	switch {
	case err != nil:
		return nil, err
	case resumed:
		return rest.ConnectSandbox201JSONResponse(out), nil
	}
	return rest.ConnectSandbox200JSONResponse{SandboxJSONResponse: rest.SandboxJSONResponse(out)}, nil
}

// ConnectSandboxV2 extends a running sandbox or resumes a paused one.
func (s *server) ConnectSandboxV2(ctx context.Context, req rest.ConnectSandboxV2RequestObject) (rest.ConnectSandboxV2ResponseObject, error) {
	b := or(req.Body, rest.ConnectSandboxV2{})
	timeout := defaultTimeoutV2
	if b.Timeout != nil {
		timeout = seconds(*b.Timeout)
	}
	out, resumed, err := s.connect(ctx, req.SandboxID, timeout, b.Memory)
	switch {
	case err != nil:
		return nil, err
	case resumed:
		return rest.ConnectSandboxV2201JSONResponse(out), nil
	}
	return rest.ConnectSandboxV2200JSONResponse{SandboxJSONResponse: rest.SandboxJSONResponse(out)}, nil
}

func (s *server) connect(ctx context.Context, text string, timeout time.Duration, memory *bool) (rest.Sandbox, bool, error) {
	id, err := hearth.ParseSandboxID(text)
	if err != nil {
		return rest.Sandbox{}, false, err
	}
	if !or(memory, true) {
		return rest.Sandbox{}, false, notYet("memory=false (resuming without memory)")
	}
	sb, resumed, err := s.sandboxes.Connect(ctx, teamOf(ctx), id, timeout)
	if err != nil {
		return rest.Sandbox{}, false, err
	}
	return s.toSandbox(sb), resumed, nil
}

// ResumeSandbox is connect for paused sandboxes alone.
func (s *server) ResumeSandbox(ctx context.Context, req rest.ResumeSandboxRequestObject) (rest.ResumeSandboxResponseObject, error) {
	b := or(req.Body, rest.ResumedSandbox{})
	timeout := defaultTimeoutV1
	if b.Timeout != nil {
		timeout = seconds(*b.Timeout)
	}
	sb, err := s.find(ctx, req.SandboxID)
	if err != nil {
		return nil, err
	}
	if sb.State == hearth.Running {
		return nil, alreadyRunning(sb.ID)
	}
	out, resumed, err := s.connect(ctx, req.SandboxID, timeout, b.Memory)
	if err != nil {
		return nil, err
	}
	if !resumed { // somebody else was faster
		return nil, alreadyRunning(sb.ID)
	}
	return rest.ResumeSandbox201JSONResponse{SandboxJSONResponse: rest.SandboxJSONResponse(out)}, nil
}

func alreadyRunning(id hearth.SandboxID) error {
	return hearth.Errorf(hearth.FailedPrecondition, "Sandbox %s is already running", id)
}

// PauseSandbox writes a sandbox's state away and stops its machine.
func (s *server) PauseSandbox(ctx context.Context, req rest.PauseSandboxRequestObject) (rest.PauseSandboxResponseObject, error) {
	id, err := hearth.ParseSandboxID(req.SandboxID)
	switch {
	case err != nil:
	case req.Body != nil && !or(req.Body.Memory, true):
		err = s.sandboxes.PauseFiles(ctx, teamOf(ctx), id)
	default:
		err = s.sandboxes.Pause(ctx, teamOf(ctx), id)
	}
	if err != nil {
		return nil, err
	}
	return rest.PauseSandbox204Response{}, nil
}

// SetSandboxTimeout moves the end of a sandbox, in either direction.
func (s *server) SetSandboxTimeout(ctx context.Context, req rest.SetSandboxTimeoutRequestObject) (rest.SetSandboxTimeoutResponseObject, error) {
	id, err := hearth.ParseSandboxID(req.SandboxID)
	if err == nil {
		err = s.sandboxes.SetTimeout(ctx, teamOf(ctx), id, seconds(req.Body.Timeout))
	}
	if err != nil {
		return nil, err
	}
	return rest.SetSandboxTimeout204Response{}, nil
}

// RefreshSandbox lets a sandbox live at least so much longer.
func (s *server) RefreshSandbox(ctx context.Context, req rest.RefreshSandboxRequestObject) (rest.RefreshSandboxResponseObject, error) {
	d := defaultRefresh
	if req.Body != nil && req.Body.Duration != nil {
		d = seconds(*req.Body.Duration)
	}
	id, err := hearth.ParseSandboxID(req.SandboxID)
	if err == nil {
		err = s.sandboxes.Extend(ctx, teamOf(ctx), id, d)
	}
	if err != nil {
		return nil, err
	}
	return rest.RefreshSandbox204Response{}, nil
}
