// Package builder makes templates: it turns a Recipe into a ready build, whose
// root file system is an EROFS layer in the blob store and whose warm snapshot
// is a machine in which the start command already runs.
//
// A build is a row that goes from waiting to building to ready or error, and a
// job in the queue. Its order of writes makes every crash harmless: the layer,
// then the snapshot, then the row that names both; until that last write the
// template's previous build stays in force. What a crash left half-made is
// found by Sweep at the next start: rows that nobody works on, machines whose
// ID is a builder's (hearth.SandboxID.OfBuild), snapshots without a ready build.
//
// Warm snapshots belong to one driver, CPU and kernel; a build has one for every
// driver that it is wanted for. When a driver's key has changed, or one of the
// snapshots is missing, Enqueue makes a new build from the same layer, so that
// only the warm step is done again.
package builder

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"hearth/internal/blob"
	"hearth/internal/hearth"
	"hearth/internal/image"
	"hearth/internal/node"
	"hearth/internal/store"
)

// rows is what the builder needs of the store.
type rows interface {
	CreateTemplate(ctx context.Context, t *hearth.Template) error
	TemplateByAlias(ctx context.Context, team hearth.TeamID, alias string) (*hearth.Template, error)
	ListTemplates(ctx context.Context, team hearth.TeamID, p store.Page) (list []*hearth.Template, next string, err error)
	CreateBuild(ctx context.Context, b *hearth.Build) error
	ListBuilds(ctx context.Context, template hearth.TemplateID) ([]*hearth.Build, error)
	UpdateBuild(ctx context.Context, b *hearth.Build) error
	FinishBuild(ctx context.Context, b *hearth.Build) error
	snapshots
}

type snapshots interface {
	CreateSnapshot(ctx context.Context, s *hearth.Snapshot) error
	Snapshot(ctx context.Context, id hearth.SnapshotID) (*hearth.Snapshot, error)
	DeleteSnapshot(ctx context.Context, id hearth.SnapshotID) error
}

// blobs is what the builder needs of blob.Local.
type blobs interface {
	Adopt(ctx context.Context, key, path string) error
	Stat(ctx context.Context, key string) (blob.Info, error)
	Delete(ctx context.Context, key string) error
	List(ctx context.Context, prefix string) iter.Seq2[blob.Info, error]
}

// shelf keeps snapshots, and says what of them and of layers is whole.
type shelf interface {
	// Remove deletes a snapshot's files; missing ones are not an error.
	Remove(ctx context.Context, id hearth.SnapshotID) error

	// Layers reports by a FailedPrecondition that a layer is damaged or gone.
	Layers(ctx context.Context, keys []string) (files []string, err error)

	// Readable reports by an error that not all of a snapshot is there.
	Readable(ctx context.Context, id hearth.SnapshotID) error
}

// host is what the builder needs of node.Service.
type host interface {
	Start(ctx context.Context, req node.StartRequest) (*node.Instance, error)
	Pause(ctx context.Context, id hearth.SandboxID, req node.PauseRequest) (*hearth.Snapshot, error)
	Stop(ctx context.Context, id hearth.SandboxID, reason string) error
	List(ctx context.Context) ([]*node.Instance, error)
}

// images is what the builder needs of image.Maker.
type images interface {
	Key(ctx context.Context, src image.Source) (string, error)
	Make(ctx context.Context, src image.Source, report image.Progress) (image.Image, error)
	Sweep(ctx context.Context) error
}

// Deps are the parts a Builder works with.
type Deps struct {
	Rows   rows
	Blobs  blobs // layers
	Shelf  shelf
	Node   host
	Images images

	// Guest connects to the daemon of a sandbox that the builder started.
	Guest func(id hearth.SandboxID, token string) Guest

	// Drivers are the node's, the one that sandboxes run on unasked first.
	Drivers []Target

	// Daemon names the guest daemon's binary; another one needs a new snapshot.
	Daemon string

	Finished func(hearth.Build) // called for every build that became ready; may be nil
	Log      *slog.Logger
	Workers  int // builds at once; 0: 2
}

// Bounds of the queue and of one build.
const (
	maxQueue   = 100
	maxBuild   = time.Hour
	maxReady   = 10 * time.Minute
	maxCleanup = 30 * time.Second
	maxKept    = 100 // finished builds whose logs are kept
)

// Builder makes templates. Its methods are safe for concurrent use.
type Builder struct {
	deps Deps

	queue chan *job
	names keyed // one Enqueue per template at a time

	mu       sync.Mutex
	jobs     map[hearth.BuildID]*job
	finished []hearth.BuildID // oldest first; their jobs hold the logs
}

// job is one build while it is made, and its logs afterwards.
type job struct {
	build  hearth.Build // the worker's alone until done is closed
	recipe Recipe
	image  string // key of the image
	log    *ring
	began  time.Time
	done   chan struct{}
}

// New returns a Builder that does nothing until Run.
func New(deps Deps) *Builder {
	if deps.Workers <= 0 {
		deps.Workers = 2
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	return &Builder{deps: deps, queue: make(chan *job, maxQueue), jobs: map[hearth.BuildID]*job{}}
}

// Run works on the queue until ctx ends, and returns when all builds have been
// put away: those that were not finished end as errors.
func (b *Builder) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range b.deps.Workers {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case j := <-b.queue:
					b.work(ctx, j)
				}
			}
		})
	}
	wg.Wait()
	for {
		select {
		case j := <-b.queue:
			b.work(ctx, j) // ctx has ended: it fails at once
		default:
			return nil
		}
	}
}

// Enqueue returns the template's build of a recipe: the ready one if nothing it
// depends on has changed, the one being made if there is one, else a new one
// that waits for a worker. The template is made if the team has none of that
// name. ResourceExhausted: too many builds wait.
func (b *Builder) Enqueue(ctx context.Context, team hearth.TeamID, r Recipe) (*hearth.Build, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	if err := b.checkDriver(r.Driver); err != nil {
		return nil, err
	}
	defer b.names.lock(string(team) + "/" + r.Name)()
	img, err := b.deps.Images.Key(ctx, r.Source)
	if err != nil {
		return nil, err
	}
	t, err := b.template(ctx, team, r)
	if err != nil {
		return nil, err
	}
	source := img + "-" + r.key(b.deps.Daemon)
	list, err := b.deps.Rows.ListBuilds(ctx, t.ID)
	if err != nil {
		return nil, err
	}
	for _, old := range list {
		if old.Source != source {
			continue
		}
		if old.ID == t.Build && b.usable(ctx, old, r.Driver) {
			return old, nil
		}
		if (old.Status == hearth.BuildWaiting || old.Status == hearth.BuildBuilding) && b.job(old.ID) != nil {
			return old, nil
		}
	}
	return b.enqueue(ctx, t, r, img, source)
}

func (b *Builder) enqueue(ctx context.Context, t *hearth.Template, r Recipe, img, source string) (*hearth.Build, error) {
	j := &job{
		recipe: r, image: img, log: newRing(), began: time.Now(), done: make(chan struct{}),
		build: hearth.Build{
			ID: hearth.NewBuildID(), Template: t.ID, Status: hearth.BuildWaiting, Source: source, Resources: r.Resources,
			Driver: r.Driver, Start: r.Start, Ready: r.Ready, Env: r.Env, User: r.User, Workdir: r.Workdir, CreatedAt: time.Now(),
		},
	}
	if err := b.deps.Rows.CreateBuild(ctx, &j.build); err != nil {
		return nil, err
	}
	row := j.build
	b.mu.Lock()
	b.jobs[row.ID] = j
	b.mu.Unlock()
	select {
	case b.queue <- j:
		return &row, nil
	default:
	}
	err := hearth.Errorf(hearth.ResourceExhausted, "%d template builds wait already; try again later", maxQueue)
	b.finish(ctx, j, err)
	return nil, err
}

func (b *Builder) template(ctx context.Context, team hearth.TeamID, r Recipe) (*hearth.Template, error) {
	t, err := b.deps.Rows.TemplateByAlias(ctx, team, r.Name)
	if hearth.KindOf(err) != hearth.NotFound || err == nil {
		return t, err
	}
	now := time.Now()
	t = &hearth.Template{ID: hearth.NewTemplateID(), Team: team, Aliases: []string{r.Name}, Public: r.Public, CreatedAt: now, UpdatedAt: now}
	return t, b.deps.Rows.CreateTemplate(ctx, t)
}

func (b *Builder) present(ctx context.Context, keys []string) bool {
	for _, k := range keys {
		if _, err := b.deps.Blobs.Stat(ctx, k); err != nil {
			return false
		}
	}
	return true
}

func (b *Builder) job(id hearth.BuildID) *job {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.jobs[id]
}

// Wait returns a build when it is ready or has failed; the error is its reason.
// A build that this Builder has not enqueued is NotFound.
func (b *Builder) Wait(ctx context.Context, id hearth.BuildID) (*hearth.Build, error) {
	j := b.job(id)
	if j == nil {
		return nil, hearth.Errorf(hearth.NotFound, "build %s is not being made", id)
	}
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-j.done:
	}
	row := j.build
	if row.Status == hearth.BuildError {
		return &row, hearth.Errorf(hearth.FailedPrecondition, "template %q was not built: %s", j.recipe.Name, row.Reason)
	}
	return &row, nil
}

// Ensure is Enqueue and Wait. Every line of the build's log goes to report as
// it is written, if report is not nil.
func (b *Builder) Ensure(ctx context.Context, team hearth.TeamID, r Recipe, report func(LogEntry)) (*hearth.Build, error) {
	build, err := b.Enqueue(ctx, team, r)
	if err != nil || build.Status == hearth.BuildReady {
		return build, err
	}
	if report != nil {
		for e := range b.Follow(ctx, build.ID) {
			report(e)
		}
	}
	return b.Wait(ctx, build.ID)
}

// work makes one build, whatever happens.
func (b *Builder) work(ctx context.Context, j *job) {
	ctx, cancel := context.WithTimeoutCause(ctx, maxBuild,
		hearth.Errorf(hearth.DeadlineExceeded, "the build took longer than %s", maxBuild))
	defer cancel()
	err := context.Cause(ctx)
	if err == nil {
		err = b.make(ctx, j)
	}
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, context.Canceled) {
		err = hearth.Wrap(hearth.Canceled, err, "the build was interrupted because the server stopped")
	}
	b.finish(ctx, j, err)
}

// finish writes the end of a build. The log's last lines come first: a client
// that sees the final status has them all.
func (b *Builder) finish(ctx context.Context, j *job, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxCleanup)
	defer cancel()
	took := time.Since(j.began).Round(100 * time.Millisecond)
	if err == nil {
		row := j.build
		row.Status, row.FinishedAt = hearth.BuildReady, time.Now()
		j.log.add(Info, stepFinalize, fmt.Sprintf("Build finished, took %s", took))
		if err = b.deps.Rows.FinishBuild(ctx, &row); err == nil {
			j.build = row
			b.deps.Log.Info("template built", "template", j.recipe.Name, "build", row.ID, "took", took)
		} else {
			b.undo(ctx, j)
		}
	}
	if err != nil {
		j.build.Status, j.build.FinishedAt, j.build.Reason = hearth.BuildError, time.Now(), reason(err)
		j.build.Layers, j.build.Warm = nil, nil
		j.log.add(Error, stepFinalize, "Build failed: "+j.build.Reason)
		b.deps.Log.Error("template not built", "template", j.recipe.Name, "build", j.build.ID, "took", took, "err", err)
		if err := b.deps.Rows.FinishBuild(ctx, &j.build); err != nil {
			b.deps.Log.Error("a failed build could not be marked; the next start will", "build", j.build.ID, "err", err)
		}
	} else {
		b.retire(ctx, j)
	}
	b.put(j)
	if err == nil && b.deps.Finished != nil {
		b.deps.Finished(j.build)
	}
}

// put ends a job and forgets the oldest finished one's logs.
func (b *Builder) put(j *job) {
	j.log.close()
	close(j.done)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.finished = append(b.finished, j.build.ID)
	if len(b.finished) > maxKept {
		delete(b.jobs, b.finished[0])
		b.finished = b.finished[1:]
	}
}

// reason is what users are told of an error.
func reason(err error) string {
	if e, ok := errors.AsType[*hearth.Error](err); ok {
		return e.Msg
	}
	return "internal error; the server's log says more"
}

// keyed is a set of locks by name.
type keyed struct {
	mu sync.Mutex
	by map[string]*waiters
}

type waiters struct {
	mu sync.Mutex
	n  int
}

// lock returns the function that gives the lock back.
func (k *keyed) lock(name string) func() {
	k.mu.Lock()
	if k.by == nil {
		k.by = map[string]*waiters{}
	}
	w := k.by[name]
	if w == nil {
		w = &waiters{}
		k.by[name] = w
	}
	w.n++
	k.mu.Unlock()
	w.mu.Lock()
	return func() {
		w.mu.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if w.n--; w.n == 0 {
			delete(k.by, name)
		}
	}
}
