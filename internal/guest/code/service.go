package code

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"hearth/internal/hearth"
)

//go:embed python/launch.py python/hearth_kernel/*.py
var pythonFiles embed.FS

const (
	connectionsDir = "connections" // kernels' connection files, which the Jupyter Server sees too
	maxContexts    = 64            // at once, default ones included
	retryPause     = time.Second   // after a default kernel that did not start
)

// Options are what a [Service] needs. All fields but Log, UID and GID are required.
type Options struct {
	Marker   Marker
	Launcher Launcher
	// StateDir is made by the service, readable by the kernels' user and best on a
	// tmpfs. At most 60 bytes long: socket paths are made of it.
	StateDir string
	// Home is the directory contexts start in unless they name another.
	Home string
	// UID and GID own what a kernel must be able to write; 0 leaves files as they are made.
	UID, GID int
	Log      *slog.Logger
}

// Service is the code interpreter of one sandbox.
type Service struct {
	opts  Options
	specs map[string]kernelSpec
	life  context.Context // ends with Close; kernels start under it
	end   context.CancelCauseFunc
	home  *executor // the default context
	lab   lab       // the Jupyter Server

	mu       sync.Mutex
	env      environment
	contexts map[string]*executor // by id
	defaults map[string]*executor // by kernel language
	warm     bool
	trouble  error // why the default kernel is not warm yet
	closed   bool
}

// environment is what Reset has set. epoch grows with every Reset and is never 0.
type environment struct {
	epoch  uint64
	values map[string]string
}

var errClosed = hearth.Errorf(hearth.Unavailable, "the code interpreter is shutting down")

// New returns a service. It starts nothing: see [Service.Run].
func New(opts Options) (*Service, error) {
	switch {
	case opts.Launcher == nil:
		return nil, hearth.Errorf(hearth.InvalidArgument, "code: Launcher is missing")
	case !filepath.IsAbs(opts.Marker.Python):
		return nil, hearth.Errorf(hearth.InvalidArgument, "code: Marker.Python must be an absolute path")
	case !filepath.IsAbs(opts.StateDir) || len(opts.StateDir) > 60:
		return nil, hearth.Errorf(hearth.InvalidArgument, "code: StateDir must be an absolute path of at most 60 bytes")
	case !filepath.IsAbs(opts.Home):
		return nil, hearth.Errorf(hearth.InvalidArgument, "code: Home must be an absolute path")
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		opts:     opts,
		specs:    opts.Marker.kernelSpecs(filepath.Join(opts.StateDir, "python", "launch.py")),
		env:      environment{epoch: 1},
		contexts: map[string]*executor{},
		defaults: map[string]*executor{},
		trouble:  errors.New("the default kernel is starting"),
	}
	s.life, s.end = context.WithCancelCause(context.Background())
	s.home = s.newExecutor(python, s.specs[python], opts.Home)
	s.contexts[s.home.id], s.defaults[python] = s.home, s.home
	return s, nil
}

// Run prepares the state directory, starts the default kernel, warms it, and
// returns when ctx ends or Close is called, with everything stopped. A kernel that
// does not start is tried again; Health says why.
func (s *Service) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.end(context.Cause(ctx)) })
	defer stop()
	defer s.Close()
	if err := s.prepare(); err != nil {
		return err
	}
	for {
		err := s.warmUp()
		s.mu.Lock()
		s.warm, s.trouble = err == nil, err
		s.mu.Unlock()
		if err == nil {
			break
		}
		s.opts.Log.Warn("default kernel", "err", err)
		select {
		case <-s.life.Done():
			return nil
		case <-time.After(retryPause):
		}
	}
	<-s.life.Done()
	return nil
}

// prepare writes the kernel's Python files and makes the directories.
func (s *Service) prepare() error {
	for _, dir := range []string{s.opts.StateDir, filepath.Join(s.opts.StateDir, "k")} {
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the kernels' user reads it
			return err
		}
	}
	err := fs.WalkDir(pythonFiles, "python", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(s.opts.StateDir, filepath.FromSlash(path))
		if d.IsDir() {
			return os.MkdirAll(to, 0o755) //nolint:gosec // as above
		}
		b, err := pythonFiles.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, b, 0o644) //nolint:gosec // as above
	})
	if err != nil {
		return err
	}
	return s.ownDir(filepath.Join(s.opts.StateDir, connectionsDir))
}

// warmUp starts the default kernel and makes it import and use what the image
// wants resident.
func (s *Service) warmUp() error {
	k, err := s.home.ensure(s.life)
	if err != nil {
		return err
	}
	return s.quietly(s.life, k, cell{orders: orders{Preload: s.opts.Marker.Preload}})
}

// Rehearse runs a cell that does nothing in the default kernel, on the way that
// users' cells take, and makes the kernel forget it. Nobody else may use the service
// meanwhile.
func (s *Service) Rehearse(ctx context.Context) error {
	if err := s.Health(); err != nil {
		return err
	}
	s.home.execute(ctx, "", nil, nowhere{})
	k, err := s.home.ensure(ctx)
	if err != nil {
		return err
	}
	return s.quietly(ctx, k, cell{orders: orders{Rehearse: true}})
}

// Health returns nil once the default kernel has been warm, else why not.
func (s *Service) Health() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.warm {
		return nil
	}
	return hearth.Wrap(hearth.Unavailable, s.trouble, "code interpreter is not ready: %s", message0(s.trouble))
}

// message0 is the part of an error that may be shown.
func message0(err error) string {
	if e, ok := errors.AsType[*hearth.Error](err); ok {
		return e.Msg
	}
	return err.Error()
}

// Reset tells the service that the sandbox has a new identity: after every Init of
// the daemon. env replaces what an earlier Reset set, internal variables included. It
// returns at once; every kernel takes the environment over and draws new random
// numbers before it runs its next cell.
func (s *Service) Reset(env map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.env = environment{epoch: s.env.epoch + 1, values: maps.Clone(env)}
}

func (s *Service) environment() environment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.env
}

// Close kills all kernels and the Jupyter Server and waits for their end.
func (s *Service) Close() {
	s.end(errClosed)
	s.mu.Lock()
	s.closed = true
	all := make([]*executor, 0, len(s.contexts))
	for _, e := range s.contexts {
		all = append(all, e)
	}
	s.contexts, s.defaults = map[string]*executor{}, map[string]*executor{}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, e := range all {
		wg.Go(func() { e.remove(errRemoved) })
	}
	wg.Wait()
	s.lab.close()
}

// find returns the context with an id.
func (s *Service) find(id string) (*executor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.contexts[id]; ok {
		return e, nil
	}
	return nil, hearth.Errorf(hearth.NotFound, "Context %s not found", clip(id))
}

// create makes a context and starts its kernel.
func (s *Service) create(language, cwd string) (*executor, error) {
	e, err := s.add(language, cwd)
	if err != nil {
		return nil, err
	}
	if _, err := e.ensure(s.life); err != nil {
		s.forget(e)
		return nil, err
	}
	return e, nil
}

func (s *Service) add(language, cwd string) (*executor, error) {
	spec, reported, err := s.spec(language)
	if err != nil {
		return nil, err
	}
	e := s.newExecutor(reported, spec, cwd)
	s.mu.Lock()
	defer s.mu.Unlock()
	return e, s.register(e)
}

// register needs s.mu.
func (s *Service) register(e *executor) error {
	if s.closed {
		return errClosed
	}
	if len(s.contexts) >= maxContexts {
		return hearth.Errorf(hearth.ResourceExhausted, "too many contexts: the limit is %d", maxContexts)
	}
	s.contexts[e.id] = e
	return nil
}

// byLanguage returns the default context of a language, made when it is missing.
func (s *Service) byLanguage(language string) (*executor, error) {
	spec, reported, err := s.spec(language)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	e, ok := s.defaults[spec.Name]
	if !ok {
		e = s.newExecutor(reported, spec, s.opts.Home)
		if err := s.register(e); err != nil {
			s.mu.Unlock()
			return nil, err
		}
		s.defaults[spec.Name] = e
	}
	s.mu.Unlock()
	if _, err := e.ensure(s.life); err != nil {
		if e != s.home {
			s.forget(e)
		}
		return nil, err
	}
	return e, nil
}

func (s *Service) spec(language string) (kernelSpec, string, error) {
	name, reported := normalise(language)
	if !validLanguage(name) {
		return kernelSpec{}, "", hearth.Errorf(hearth.InvalidArgument,
			"language %q is not a name of at most %d characters", clip(language), maxLanguage)
	}
	spec, ok := s.specs[name]
	if !ok {
		return kernelSpec{}, "", hearth.Errorf(hearth.Unimplemented,
			"language %q is not available: the image of this sandbox has no kernel for it (it has %s)",
			reported, listed(s.specs))
	}
	return spec, reported, nil
}

// forget takes a context out of the tables and ends it. It reports whether this
// call was the one that did.
func (s *Service) forget(e *executor) bool {
	s.mu.Lock()
	_, known := s.contexts[e.id]
	delete(s.contexts, e.id)
	if s.defaults[e.spec.Name] == e {
		delete(s.defaults, e.spec.Name)
	}
	s.mu.Unlock()
	if known {
		e.remove(errRemoved)
	}
	return known
}

// ownDir makes a directory that only the kernels' user may enter.
func (s *Service) ownDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	return s.own(path)
}

// ownFile writes a file that only the kernels' user may read.
func (s *Service) ownFile(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	return s.own(path)
}

func (s *Service) own(path string) error {
	if s.opts.UID == 0 && s.opts.GID == 0 {
		return nil
	}
	if err := os.Lchown(path, s.opts.UID, s.opts.GID); err != nil {
		return fmt.Errorf("giving %s to the kernels' user: %w", path, err)
	}
	return nil
}
