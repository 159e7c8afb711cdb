// Package app is the composition root: it turns a configuration into the parts
// of a server, in the order in which they depend on each other, and runs them.
// It is the only package that knows everything.
//
// Files in the data directory:
//
//	hearth.lock     held by the process that uses the directory
//	hearth.pid      of the running server; hearth.address is where it listens
//	hearth.log      of a detached server
//	api-key         the first team's API key, 0600; `hearth env` prints it
//	token-seed      the secret from which sandboxes' tokens come, 0600
//	hearth.db       metadata (SQLite)
//	blobs/          layers and snapshots, read-only files
//	archive/        snapshots, compressed, unless config says where
//	guest/          EROFS images of the guest daemon, named by content
//	node/           the node agent's journal and machines
//	cache/          template sources, unless config says where
package app

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/auth"
	"hearth/internal/blob/fileblob"
	"hearth/internal/builder"
	"hearth/internal/config"
	"hearth/internal/control"
	"hearth/internal/control/compare"
	"hearth/internal/control/travel"
	"hearth/internal/driver"
	"hearth/internal/edge"
	"hearth/internal/guest/agentclient"
	"hearth/internal/guest/embedded"
	"hearth/internal/hearth"
	"hearth/internal/image"
	"hearth/internal/node"
	"hearth/internal/node/agent"
	"hearth/internal/node/agent/courier"
	"hearth/internal/node/agent/inventory"
	"hearth/internal/node/agent/secret"
	"hearth/internal/node/agent/shelf"
	"hearth/internal/store/sqlstore"
)

// Options is what the command line adds to the configuration.
type Options struct {
	Log      *slog.Logger
	Progress io.Writer // what a person waits for, line by line
	Version  string
	Ready    func() // called once, when everything serves
}

// runtimeDir holds what a reboot must forget: sockets, namespaces, uid ranges.
const runtimeDir = "/run/hearth"

// nodeID names the only node of a server on one machine.
const nodeID hearth.NodeID = "local"

// App is a server's parts, in the order in which they were made.
type App struct {
	cfg     *config.Config
	opts    Options
	lock    *lock
	db      *sqlstore.Store
	blobs   *fileblob.Store
	shelf   *shelf.Shelf
	plain   string          // directory of plain files in memory; empty: they are in the data directory
	temp    string          // directory of files that become parts of snapshots
	drivers []driver.Driver // every one of this build, be it able to run here or not
	choice  *choice
	network *slots
	agent   *agent.Agent
	traffic atomic.Pointer[edge.Edge]
	keys    *auth.Keys
	tokens  *auth.Tokens
	control *control.Controller
	cache   *image.Cache
	builder *builder.Builder
	travel  *travel.Desk
	compare *compare.Desk
	team    *hearth.Team

	leaving bool // opened to stop everything: no driver is missed
	faults  faults
}

// open locks the data directory, makes the parts and recovers what an earlier
// process left. What it opened is closed again when it fails.
func (a *App) open(ctx context.Context) (err error) {
	if a.lock, err = acquire(a.cfg.Data); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	for _, step := range []func(context.Context) error{a.openStores, a.openAuth, a.openNode, a.openControl, a.openBuilder} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// close lets go of everything and leaves the sandboxes running.
func (a *App) close() {
	if a.agent != nil {
		a.agent.Close()
	}
	if a.network != nil {
		if err := a.network.Close(); err != nil {
			a.opts.Log.Warn("network slots not closed", "err", err)
		}
	}
	if a.db != nil {
		if err := a.db.Close(); err != nil {
			a.opts.Log.Warn("database not closed", "err", err)
		}
	}
	a.lock.release()
}

func (a *App) path(elem ...string) string {
	return filepath.Join(append([]string{a.cfg.Data}, elem...)...)
}

func (a *App) openStores(ctx context.Context) (err error) {
	if a.db, err = sqlstore.Open(ctx, a.path(databaseFile)); err != nil {
		return err
	}
	if a.blobs, err = fileblob.Open(a.path("blobs")); err != nil {
		return err
	}
	return a.openShelf()
}

// openAuth makes the first team and its key on the first start.
func (a *App) openAuth(ctx context.Context) error {
	seed, err := auth.LoadOrCreateSecret(a.path(seedFile))
	if err != nil {
		return err
	}
	if a.tokens, err = auth.NewTokens(seed); err != nil {
		return err
	}
	a.keys = auth.NewKeys(a.db, time.Now)
	teams, err := a.db.ListTeams(ctx)
	if err != nil {
		return err
	}
	if len(teams) == 0 {
		t := &hearth.Team{ID: "default", Name: "Default", Slug: "default"}
		if err := a.db.CreateTeam(ctx, t); err != nil {
			return err
		}
		teams = append(teams, t)
	}
	a.team = teams[0]
	return a.ensureKey(ctx)
}

// ensureKey makes sure that the key in the data directory opens the first team,
// also after a crash between the file and the row.
func (a *App) ensureKey(ctx context.Context) error {
	key, err := loadKey(a.path(KeyFile))
	if err != nil {
		return err
	}
	if _, err := a.db.TeamByKeyHash(ctx, auth.HashKey(key)); hearth.KindOf(err) != hearth.NotFound {
		return err
	}
	return a.db.CreateAPIKey(ctx, auth.KeyRow(key, a.team.ID, "first", time.Now()))
}

// loadKey reads the API key at path, or makes one there, whole or not at all.
func loadKey(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err == nil {
		return trimSpace(raw), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", hearth.Wrap(hearth.PermissionDenied, err, "%s cannot be read", path)
	}
	key := hearth.NewAPIKey()
	return key, writeFile(path, key+"\n")
}

func (a *App) openNode(ctx context.Context) error {
	image, err := GuestImage(ctx, a.path("guest"))
	if err != nil {
		return err
	}
	if a.drivers, err = allDrivers(parts{cfg: a.cfg, guest: image, log: a.opts.Log}); err != nil {
		return err
	}
	if a.choice, err = choose(ctx, a.cfg, a.drivers, a.opts.Log); err != nil {
		if !a.leaving {
			return err
		}
		a.choice = &choice{offers: []string{""}}
	}
	for _, name := range a.choice.slow {
		fmt.Fprintf(a.opts.Progress, "warning: driver %s emulates the processor in software: its sandboxes are many times slower than this host\n", name)
	}
	byName := map[string]driver.Driver{}
	for _, d := range a.drivers {
		byName[d.Name()] = a.faults.driver(d)
	}
	if a.network, err = newNetwork(a.cfg, nodeTag(a.cfg.Data), a.opts.Log); err != nil {
		return err
	}
	if err := a.network.Open(ctx); err != nil {
		return err
	}
	a.agent = agent.New(agent.Config{
		Node: nodeID, Dir: a.path("node"), Plain: a.plain, DNS: nameServers(a.cfg, "/etc/resolv.conf"),
		Driver: a.choice.offers[0], Offers: a.choice.offers[1:],
		Total:  capacity(a.cfg.Node.Overcommit),
		Starts: a.cfg.Node.Starts, Queue: a.cfg.Node.Queue,
		PoolMemory: int64(a.cfg.Node.PoolMiB) << 20, PoolCeiling: 1000, // of a template: config.PoolBounds
		Blanks: a.cfg.Node.Blanks,
	}, agent.Deps{
		Drivers: byName, Network: a.faults.network(a.network), Shelf: a.shelf, Log: a.opts.Log,
		Guest: func(dial agent.Dialer, secret string) agent.Guest {
			return a.faults.guest(nodeGuest{agentclient.New(dial, secret)})
		},
	})
	return a.agent.Open(ctx)
}

// capacity is what machines may ask for in all. What they use is bounded by the
// agent, which starts none when the host runs short of memory; their disks are
// in that memory, too.
func capacity(overcommit int) hearth.Resources {
	var s unix.Sysinfo_t
	if err := unix.Sysinfo(&s); err != nil {
		return hearth.Resources{}
	}
	host := int(s.Totalram * uint64(s.Unit) >> 20)
	return hearth.Resources{VCPUs: runtime.NumCPU() * overcommit, MemoryMiB: host * overcommit, DiskMiB: host * overcommit}
}

// nodeTag tells the nodes of one host apart in the names of devices and tables.
func nodeTag(data string) string {
	sum := sha256.Sum256([]byte(data))
	return hex.EncodeToString(sum[:3])[:5]
}

// GuestImage packs the embedded guest daemon, once per content: checkpoints
// need the image that they were written with.
func GuestImage(ctx context.Context, dir string) (string, error) {
	bin, err := embedded.Binary()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "guest-"+binaryDigest(bin)+".erofs")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", hearth.Wrap(hearth.PermissionDenied, err, "%s cannot be made", dir)
	}
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if _, err := image.GuestErofs(ctx, bin, tmp); err != nil {
		return "", err
	}
	return path, os.Rename(tmp, path)
}

func binaryDigest(bin []byte) string {
	sum := sha256.Sum256(bin)
	return hex.EncodeToString(sum[:8])
}

func (a *App) openControl(ctx context.Context) error {
	a.control = control.New(control.Deps{
		Store: a.faults.rows(a.db), Nodes: oneNode{a.agent}, Tokens: a.tokens, Shelf: a.shelf, Now: time.Now, Log: a.opts.Log,
		Limits: control.Limits{Sandboxes: a.cfg.Sandbox.Max, MaxTimeout: a.cfg.Sandbox.MaxTimeout},
		Unused: func(id hearth.SandboxID) (time.Time, bool) {
			if e := a.traffic.Load(); e != nil {
				return e.Unused(id)
			}
			return time.Time{}, false // the edge is not there yet
		},
	})
	if err := a.control.Reconcile(ctx); err != nil {
		return err
	}
	key, err := secret.Load(a.path("node", "control.key"))
	if err != nil {
		return err
	}
	a.travel = travel.New(a.control.Archive(), a.db, &courier.Courier{
		Shelf: a.shelf, Key: key, Tmp: a.temp, Limit: travel.MaxBytes,
	}, time.Now)
	a.compare = compare.New(a.control.Archive(), a.db, inventory.New(inventory.Deps{
		Agent: a.agent, Shelf: a.shelf, Log: a.opts.Log,
		Guest: func(dial agent.Dialer, secret string) inventory.Lister { return agentclient.New(dial, secret) },
	}))
	return nil
}

func (a *App) openBuilder(ctx context.Context) error {
	a.cache = image.NewCache(a.cfg.CacheDir())
	bin, err := embedded.Binary()
	if err != nil {
		return err
	}
	a.builder = builder.New(builder.Deps{
		Rows: a.db, Blobs: a.blobs, Shelf: a.shelf, Node: a.agent, Images: image.NewMaker(a.cache),
		Guest: func(id hearth.SandboxID, token string) builder.Guest {
			return newBuildGuest(a.agent, id, token)
		},
		Drivers: a.choice.targets, Daemon: binaryDigest(bin), Log: a.opts.Log,
		Finished: func(hearth.Build) { a.keepPools(context.WithoutCancel(ctx)) },
	})
	teams, err := a.db.ListTeams(ctx)
	if err != nil {
		return err
	}
	ids := make([]hearth.TeamID, 0, len(teams))
	for _, t := range teams {
		ids = append(ids, t.ID)
	}
	return a.builder.Sweep(ctx, ids)
}

// keepPools tells the node which templates to hold warm machines of.
func (a *App) keepPools(ctx context.Context) {
	pools, err := a.pools(ctx)
	if err == nil {
		err = a.agent.Keep(ctx, pools)
	}
	if err != nil {
		a.opts.Log.Warn("pools not updated", "err", err)
	}
}

func (a *App) pools(ctx context.Context) ([]node.Pool, error) {
	var list []node.Pool
	for _, name := range templateNames(a.cfg) {
		_, build, err := a.db.ResolveTemplate(ctx, a.team.ID, name)
		if err != nil {
			continue // not made yet
		}
		for _, id := range build.Warm {
			snap, err := a.db.Snapshot(ctx, id)
			if err != nil {
				return nil, err
			}
			floor, ceiling := a.cfg.PoolBounds(name)
			if snap.Driver != cmp.Or(build.Driver, a.choice.offers[0]) {
				floor = min(floor, 1) // for those who ask
			}
			list = append(list, node.Pool{Build: *build, Snapshot: *snap, Floor: floor, Ceiling: ceiling})
		}
	}
	return list, nil
}

func templateNames(c *config.Config) []string {
	names := append([]string(nil), c.Builtin...)
	for _, t := range c.Templates {
		names = append(names, t.Name)
	}
	return names
}

// oneNode is the fleet of a server on one machine.
type oneNode struct{ agent *agent.Agent }

// Node implements control's view of the fleet.
func (n oneNode) Node(id hearth.NodeID) (node.Service, error) {
	if id != nodeID {
		return nil, hearth.Errorf(hearth.NotFound, "there is no node %q", id)
	}
	return n.agent, nil
}

// Statuses implements control's view of the fleet.
func (n oneNode) Statuses() []*hearth.NodeStatus {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s, err := n.agent.Status(ctx)
	if err != nil {
		return nil // not open: nothing can be placed
	}
	return []*hearth.NodeStatus{s}
}

// URL is where clients on this host reach a listening address.
func URL(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "http://" + listen
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}
