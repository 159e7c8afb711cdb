package machines

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"hearth/internal/app"
	"hearth/internal/bench/stock"
	"hearth/internal/builder"
	"hearth/internal/config"
	"hearth/internal/driver"
	"hearth/internal/driver/hostproc"
	"hearth/internal/guest"
	"hearth/internal/guest/agentclient"
	"hearth/internal/hearth"
	"hearth/internal/image"
	"hearth/internal/netns"
)

const (
	template  = "base"
	diskMiB   = 256
	subjectID = "bench" // of sandbox and template, as machines are told
)

// lab is what the machines of one run are made of.
type lab struct {
	cfg      *config.Config // the user's, with data and control group of this run
	dir      string         // temporary
	layer    string         // root image of the template
	all      []driver.Driver
	network  *netns.Manager
	stock    *stock.Maker
	progress io.Writer

	made  int // machines
	alive []*machine
}

// open makes ready what a node has ready before its first sandbox.
func open(ctx context.Context, cfg *config.Config, o Options, progress io.Writer) (_ *lab, err error) {
	c := *cfg
	c.Cache = cfg.CacheDir()
	c.Node.Cgroup = fmt.Sprintf("/hearth-machines%d", os.Getpid())
	c.Node.QEMU.Emulate = c.Node.QEMU.Emulate || o.Emulate
	l := &lab{cfg: &c, progress: progress}
	if l.dir, err = os.MkdirTemp("", "hearth-bench-"); err != nil {
		return nil, hearth.Wrap(hearth.PermissionDenied, err, "no temporary directory can be made")
	}
	c.Data = l.dir
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close(ctx))
		}
	}()
	guestImage, err := app.GuestImage(ctx, filepath.Join(l.dir, "guest"))
	if err != nil {
		return nil, err
	}
	if l.all, err = app.Drivers(&c, guestImage, slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	slices.Reverse(l.all) // what is there everywhere first
	if l.network, err = network(ctx, &c); err != nil {
		return nil, err
	}
	l.say("making the image of %s, unless it is in %s", template, c.Cache)
	if l.layer, err = rootImage(ctx, image.NewCache(c.Cache)); err != nil {
		return nil, err
	}
	l.stock, err = stock.New(ctx, &c, filepath.Join(l.dir, "stock"))
	return l, err
}

// rootImage is the layer that a server would make of the template.
func rootImage(ctx context.Context, cache *image.Cache) (string, error) {
	recipe, err := builder.Builtin(template, cache)
	if err != nil {
		return "", err
	}
	made, err := image.NewMaker(cache).Make(ctx, recipe.Source, nil)
	return made.Path, err
}

func network(ctx context.Context, c *config.Config) (*netns.Manager, error) {
	prefix, err := netip.ParsePrefix(c.Network.Prefix)
	if err != nil {
		return nil, hearth.Wrap(hearth.InvalidArgument, err, "network.prefix: %q", c.Network.Prefix)
	}
	m, err := netns.New(netns.Config{Name: fmt.Sprintf("m%d", os.Getpid()%10000), Prefix: prefix, ReadyMax: -1}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return m, m.Open(ctx)
}

func (l *lab) say(format string, args ...any) {
	fmt.Fprintf(l.progress, "bench: "+format+"\n", args...)
}

// close ends what is still alive and removes all that was made.
func (l *lab) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTime)
	defer cancel()
	var errs []error
	for _, m := range slices.Clone(l.alive) {
		errs = append(errs, m.close(ctx))
	}
	if l.stock != nil {
		errs = append(errs, l.stock.Close(ctx))
	}
	if l.network != nil {
		errs = append(errs, l.network.Remove(ctx))
	}
	errs = append(errs, hostproc.CgroupAt(l.cfg.Node.Cgroup).Remove(ctx), app.Purge(l.all), os.RemoveAll(l.dir))
	return errors.Join(errs...)
}

// machine is one of a driver's, with its network slot.
type machine struct {
	driver.Machine
	lab   *lab
	slot  *netns.Slot
	agent *agentclient.Client
}

// start boots a machine, or restores one, and returns how long that took until its
// guest daemon had answered. What a node has ready before a start, a network slot
// and a directory, is not counted.
func (s *subject) start(ctx context.Context, from *driver.Checkpoint) (m *machine, took time.Duration, err error) {
	l := s.lab
	l.made++
	id := fmt.Sprintf("bench-%d-%d", os.Getpid(), l.made)
	dir := filepath.Join(l.dir, id)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return nil, 0, err
	}
	acquire := l.network.Acquire
	if s.caps.Tap {
		acquire = l.network.AcquireTap
	}
	slot, err := acquire(ctx)
	if err == nil {
		err = l.network.SetPolicy(ctx, slot.Index, netns.Policy{})
	}
	if err != nil {
		return nil, 0, errors.Join(err, l.free(ctx, slot, dir))
	}
	spec := driver.Spec{ID: id, Dir: dir, Layers: []string{l.layer}, Resources: s.size, Net: attachment(slot), Hostname: id, From: from}
	began := time.Now()
	started, err := s.driver.Start(ctx, spec)
	if err != nil {
		return nil, 0, errors.Join(err, l.free(ctx, slot, dir))
	}
	m = &machine{Machine: started, lab: l, slot: slot, agent: agentclient.New(started.Dial, rand.Text())}
	l.alive = append(l.alive, m)
	if err := m.agent.Ready(ctx); err != nil {
		return nil, 0, errors.Join(err, m.close(ctx))
	}
	return m, time.Since(began), nil
}

func attachment(s *netns.Slot) driver.Attachment {
	return driver.Attachment{NetNS: s.NetNS, Guest: s.Guest, Gateway: s.Gateway, Device: s.Device, MAC: s.MAC(), Tap: s.Tap}
}

// free gives back what a start was prepared with.
func (l *lab) free(ctx context.Context, slot *netns.Slot, dir string) error {
	err := os.RemoveAll(dir)
	if slot != nil {
		err = errors.Join(err, l.network.Release(context.WithoutCancel(ctx), slot.Index))
	}
	return err
}

// close ends a machine; a second call does nothing.
func (m *machine) close(ctx context.Context) error {
	at := slices.Index(m.lab.alive, m)
	if at < 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if err := m.Close(ctx); err != nil {
		return err
	}
	m.lab.alive = slices.Delete(m.lab.alive, at, at+1)
	return m.lab.free(ctx, m.slot, m.Handle().Dir)
}

// unseal makes the daemon serve, as a server does once a machine is somebody's.
func (m *machine) unseal(ctx context.Context) error {
	seed := make([]byte, 32)
	rand.Read(seed) // never fails
	if err := m.agent.Init(ctx, guest.InitRequest{Now: time.Now(), Seed: seed, SandboxID: subjectID, TemplateID: subjectID, User: "user"}); err != nil {
		return err
	}
	driver.ExactTimers(m.Machine)
	return nil
}

// synced writes the files of a checkpoint to the disk, all at once, and then their
// directory: drivers leave that to whoever keeps the checkpoint.
func synced(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var all errgroup.Group
	for _, e := range entries {
		all.Go(func() error { return syncFile(filepath.Join(dir, e.Name())) })
	}
	if err := all.Wait(); err != nil {
		return err
	}
	return syncFile(dir)
}

func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// group is the machine's control group, below the hierarchies' roots.
func (m *machine) group() string { return filepath.Join(m.lab.cfg.Node.Cgroup, m.Handle().ID) }

// written is the space that the files of a directory take on their disk.
func written(dir string) (int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, e.Name()), &st); err != nil {
			return 0, err
		}
		const block = 512 // of st_blocks, whatever the file system's are
		sum += st.Blocks * block
	}
	return sum, nil
}
