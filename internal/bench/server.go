package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"hearth/client"
	"hearth/internal/app"
	"hearth/internal/config"
	"hearth/internal/hearth"
)

const (
	self     = "/proc/self/exe"
	stopTime = 30 * time.Second // for a server that was told to end
	fullTime = 10 * time.Second // for the pools to fill
	stuck    = 1500 * time.Millisecond

	maxOvercommit = 1000 // the largest that a configuration may have
)

// server is the Hearth that is measured.
type server struct {
	cfg    *config.Config
	exe    string // the program
	pool   pool
	file   string    // its configuration; empty: it is not ours
	cmd    *exec.Cmd // likewise nil
	exited chan struct{}
	key    string // API key
	url    string
	client *client.Client
}

// serve makes sure that a server of the kind runs.
func (r *run) serve(ctx context.Context, kind pool) error {
	if r.server != nil && (r.server.pool == kind || r.opts.Running) {
		return nil
	}
	if r.server != nil {
		if err := r.server.close(context.WithoutCancel(ctx)); err != nil {
			return err
		}
		r.server = nil
	}
	if r.opts.Running {
		if app.Pid(r.cfg.Data) == 0 {
			return hearth.Errorf(hearth.NotFound, "no server runs on %s; leave --data out to measure one that is started for it", r.cfg.Data)
		}
		r.server = &server{cfg: r.cfg, pool: poolFull}
		return r.server.connect()
	}
	c := r.config("data")
	switch kind {
	case poolEmpty:
		c.Node.Pool, c.Node.PoolMax = 0, 0
	case poolLarge:
		c.Builtin, c.Node.Pool = []string{baseTemplate}, burstSize
	}
	if err := fill(ctx, c.Data, kind.rows()); err != nil {
		return err
	}
	r.server = r.newServer(c, self, kind)
	if err := r.server.start(ctx, r.progress); err != nil {
		err = errors.Join(err, r.server.close(context.WithoutCancel(ctx)))
		r.server = nil
		return err
	}
	return r.server.connect()
}

// config is that of a server of ours, whose data directory has the name.
func (r *run) config(name string) *config.Config {
	c := *r.cfg
	c.Cache = r.cfg.CacheDir()
	c.Data, c.Listen, c.Metrics = filepath.Join(r.dir, name), "127.0.0.1:0", ""
	c.Builtin, c.Templates = []string{baseTemplate, codeTemplate}, nil
	c.Log.Level = "warn"
	c.Node.Overcommit = maxOvercommit // the memory that is there is what bounds row 8
	c.Sandbox.Max = max(c.Sandbox.Max, r.opts.Sandboxes+10)
	return &c
}

// newServer is a program that can be started as a server.
func (r *run) newServer(c *config.Config, exe string, kind pool) *server {
	return &server{cfg: c, exe: exe, pool: kind, file: c.Data + ".yaml", exited: make(chan struct{})}
}

// start runs the program as a server and returns when it is ready.
func (s *server) start(ctx context.Context, progress io.Writer) error {
	raw, err := s.cfg.YAML()
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.file, raw, 0o600); err != nil {
		return err
	}
	log, err := os.Create(s.file + ".log")
	if err != nil {
		return err
	}
	defer log.Close()
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	s.cmd = exec.Command(s.exe, "--config", s.file, "up", "--data", s.cfg.Data, "--progress-fd", "3")
	s.cmd.Env = plainEnviron()
	s.cmd.Stdout, s.cmd.Stderr, s.cmd.ExtraFiles = log, log, []*os.File{writer}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // ^C is ours to handle
	err = s.cmd.Start()
	writer.Close()
	if err != nil {
		s.cmd = nil
		return hearth.Wrap(hearth.Internal, err, "the server cannot be started")
	}
	go func() {
		_ = s.cmd.Wait() // its progress says why
		close(s.exited)
	}()
	defer context.AfterFunc(ctx, func() { reader.Close() })()
	last := ""
	for lines := bufio.NewScanner(reader); lines.Scan(); {
		last = lines.Text()
		if strings.HasPrefix(last, "ready: ") {
			return nil
		}
		_, _ = io.WriteString(progress, "server: "+last+"\n")
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return hearth.Errorf(hearth.FailedPrecondition, "the server did not come up: %s", strings.TrimPrefix(last, "error: "))
}

// plainEnviron is the environment without settings: they are all in the file.
func plainEnviron() []string {
	var list []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "HEARTH_") {
			list = append(list, kv)
		}
	}
	return list
}

// connect reads what the server left for its users.
func (s *server) connect() error {
	key, err := os.ReadFile(filepath.Join(s.cfg.Data, app.KeyFile))
	if err != nil {
		return hearth.Wrap(hearth.PermissionDenied, err, "the server's key cannot be read")
	}
	addr, err := os.ReadFile(filepath.Join(s.cfg.Data, app.AddressFile))
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "the server's address cannot be read")
	}
	s.key, s.url = strings.TrimSpace(string(key)), app.URL(strings.TrimSpace(string(addr)))
	s.client, err = client.New(client.Options{APIKey: s.key, APIURL: s.url, SandboxURL: s.url})
	return err
}

// environ is what an E2B program needs.
func (s *server) environ() []string {
	return []string{"E2B_API_KEY=" + s.key, "E2B_API_URL=" + s.url, "E2B_SANDBOX_URL=" + s.url}
}

// close ends a server of ours and everything that it started.
func (s *server) close(ctx context.Context) error {
	if s.cmd == nil {
		return nil
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // gone is as good
	select {
	case <-s.exited:
	case <-time.After(stopTime):
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
	s.cmd = nil
	down := exec.CommandContext(ctx, s.exe, "--config", s.file, "down", "--data", s.cfg.Data)
	down.Env, down.SysProcAttr = plainEnviron(), &syscall.SysProcAttr{Setsid: true}
	out, err := down.CombinedOutput()
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "the server's sandboxes may still run: %s", strings.TrimSpace(string(out)))
	}
	return nil
}

// record is the part of a machine's journal that says what the machine is.
type record struct {
	Phase  string `json:"phase"`
	Handle struct {
		ID    string `json:"id"`
		Dir   string `json:"dir"`
		State []byte `json:"state"` // the driver's own
	} `json:"handle"`
	Resources hearth.Resources  `json:"resources"`
	Restored  hearth.SnapshotID `json:"restored"`
	Sandbox   *struct {
		ID string `json:"id"`
	} `json:"sandbox"`
}

// machines reads the journal of the server's node. Machines come and go
// meanwhile: what cannot be read is not listed.
func (s *server) machines() []record {
	dir := filepath.Join(s.cfg.Data, "node", "machines")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var list []record
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		if m, ok := lastRecord(raw); ok {
			list = append(list, m)
		}
	}
	return list
}

func lastRecord(raw []byte) (last record, ok bool) {
	for l := range strings.Lines(string(raw)) {
		var m record
		if json.Unmarshal([]byte(l), &m) == nil && m.Handle.ID != "" {
			last, ok = m, true
		}
	}
	return last, ok
}

// of returns the machine of a sandbox.
func (s *server) of(sandbox string) (record, error) {
	for _, m := range s.machines() {
		if m.Sandbox != nil && m.Sandbox.ID == sandbox {
			return m, nil
		}
	}
	return record{}, hearth.Errorf(hearth.NotFound, "sandbox %s has no machine on this host", sandbox)
}

// ready lists the machines that wait in pools.
func (s *server) ready() map[string]bool {
	ids := map[string]bool{}
	for _, m := range s.machines() {
		if m.Phase == "pooled" {
			ids[m.Handle.ID] = true
		}
	}
	return ids
}

// atRest is how long nothing may have moved before a host counts as at rest: until then the kernel's
// scheduler remembers the load there was (half of it after 32 ms) and spreads over the processors what wakes each other up.
const atRest = 200 * time.Millisecond

// settle waits until no machine has been made or taken down for a while and the pools hold at least what they
// are to hold with nothing asked of them. A sandbox that was killed counts as running for the moment in which
// what it held is freed, behind its kill's answer. A server that never comes to rest is measured as it is.
func (s *server) settle(ctx context.Context) {
	want := (s.cfg.Node.Pool + s.cfg.Node.Blanks) * len(s.cfg.Builtin) // Pool is 0 when it is to be empty
	give := time.Now().Add(fullTime)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for before, since := -1, time.Now(); time.Now().Before(give); {
		moving, waiting := 0, 0
		for _, m := range s.machines() {
			switch m.Phase {
			case "pooled", "blank":
				waiting++
			case "running":
			default:
				moving++
			}
		}
		if waiting != before || moving > 0 {
			before, since = waiting, time.Now()
		}
		if waiting >= want && time.Since(since) > atRest {
			return
		}
		if time.Since(since) > stuck {
			return // fuller it does not get
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

var errUnexpected = errors.New("the sandbox gave another answer than it should")
