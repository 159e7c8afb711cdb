package e2e

import (
	"bytes"
	"database/sql"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "modernc.org/sqlite" // the driver of row

	"hearth/client"
)

// crashes is a server that dies on command, and one sandbox of it.
type crashes struct {
	t     *testing.T
	s     *server
	order string // the file that says where it dies: package fault
	api   *client.Client
	sb    *client.Sandbox
	lines []string        // of the sandbox's file; acknowledged
	kept  string          // a snapshot of the sandbox
	then  []string        // its file then
	extra string          // another snapshot, of the deed's own
	other *client.Sandbox // another sandbox, likewise
	busy  *client.Process // a command of it that is waited for
	file  []byte          // the kept snapshot as it travels
	rows  map[string]int  // of templates and builds, before any deed
	gone  map[string]bool // machines of which nothing is left
	ended <-chan struct{} // closed when the server's process is gone
}

// crashTime is how long the points take in every run of the tests, in an order that
// chance decides; HEARTH_TEST_CRASHES asks for more: all of them take some minutes.
const crashTime = 40 * time.Second

// TestKilledAtEveryPoint kills the server, a process of its own, at every named
// point of everything that moves a sandbox, and starts it again. What a call
// acknowledged is there then; of what was cut short nothing is left but a sandbox or
// snapshot that the server tells of.
func TestKilledAtEveryPoint(t *testing.T) {
	order := filepath.Join(t.TempDir(), "order")
	s := prepare(t, "HEARTH_BUILTIN=base", "HEARTH_NODE_POOL=0", "HEARTH_NODE_POOL_MAX=0", "HEARTH_NODE_BLANKS=0", "FAULT_POINTS="+order)
	s.bin = mortal(t)
	s.up(t)
	pid := s.pid(t)
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	eventually(t, "the server is gone", func() bool { return syscall.Kill(pid, 0) != nil })
	c := &crashes{t: t, s: s, order: order, api: s.client(t), gone: map[string]bool{}}
	c.start()
	c.sb = s.sandbox(t, client.CreateOptions{Timeout: time.Hour, AutoPause: true})
	c.write("first")
	c.run("echo in memory > /dev/shm/word")
	snap, err := c.api.Snapshot(t.Context(), c.sb.ID, "")
	must(t, err)
	c.kept, c.then = snap.ID, slices.Clone(c.lines)
	var file bytes.Buffer
	must(t, c.api.Export(t.Context(), c.kept, &file))
	c.file, c.rows = file.Bytes(), c.imports()
	type death struct {
		deed
		point string
	}
	var all []death
	for _, d := range deeds() {
		for _, point := range c.trace(d) {
			all = append(all, death{d, point})
		}
	}
	seed := uint64(time.Now().UnixNano())
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	length := crashLength(t)
	until, died := time.Now().Add(length), map[string]int{}
	for _, at := range all {
		if time.Now().After(until) || t.Failed() {
			break
		}
		if at.slow && length == crashTime && died[at.name] > 0 {
			continue
		}
		if c.kill(at.deed, at.point) {
			died[at.name]++
		}
	}
	t.Logf("seed %d: %d points, the server died at %v of them", seed, len(all), died)
	if t.Failed() {
		return
	}
	must(t, c.sb.Kill(t.Context()))
	must(t, c.api.DeleteSnapshot(t.Context(), c.kept))
	eventually(t, "of snapshots the template's alone has files", func() bool { return len(snapshotFiles(s)) == 1 })
}

func crashLength(t *testing.T) time.Duration {
	v := os.Getenv("HEARTH_TEST_CRASHES")
	if v == "" {
		return crashTime
	}
	length, err := time.ParseDuration(v)
	if err != nil {
		t.Fatalf("HEARTH_TEST_CRASHES: %v", err)
	}
	return length
}

// start starts the server again, without the wait for its templates, which are there.
func (c *crashes) start() {
	c.t.Helper()
	log, err := os.OpenFile(filepath.Join(c.s.data, "hearth.log"), os.O_WRONLY|os.O_APPEND, 0)
	must(c.t, err)
	defer log.Close()
	cmd := c.s.hearth("up", "--data", c.s.data, "--listen", c.s.listen)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	must(c.t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	c.ended = ended
	eventually(c.t, "the server serves", func() bool {
		select {
		case <-ended:
			c.t.Fatalf("the server ended as it started")
		case <-time.After(5 * time.Millisecond):
		}
		return c.api.Health(c.t.Context()) == nil
	})
}

// mortal builds the binary with points of death.
func mortal(t *testing.T) string {
	t.Helper()
	tags := "hearthfault"
	if strings.Contains(os.Getenv("GOFLAGS"), "hearthcow") {
		tags += ",hearthcow"
	}
	bin := filepath.Join(t.TempDir(), "hearth")
	build := exec.Command("go", "build", "-trimpath", "-tags", tags, "-ldflags", "-s -w -X main.version=mortal", "-o", bin, "../../cmd/hearth")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// trace does the deed once without a fault and returns the points on its way.
func (c *crashes) trace(d deed) []string {
	c.t.Helper()
	must(c.t, d.prepare(c))
	must(c.t, os.RemoveAll(c.order+".trace"))
	must(c.t, os.WriteFile(c.order, []byte("trace"), 0o600))
	must(c.t, d.do(c))
	within(time.Second/2, func() bool { return false }) // for what is done behind the answer
	must(c.t, os.Remove(c.order))
	raw, err := os.ReadFile(c.order + ".trace")
	must(c.t, err)
	if d.name == "rollback" {
		c.lines = slices.Clone(c.then)
	}
	c.settle(d)
	times := map[string]int{}
	var points []string
	for name := range strings.Lines(string(raw)) {
		name = strings.TrimSpace(name)
		times[name]++
		// What comes after a call is what comes before the next, but for the last.
		if first := len(points) == 0; first || strings.HasSuffix(name, ".after") {
			points = append(points, fmt.Sprintf("%s %d", name, times[name]))
		}
	}
	if len(points) < 3 {
		c.t.Fatalf("points on the way: %q", points)
	}
	return points
}

// kill does the deed with a death at one point, starts the server again and looks.
// False: the point did not come, as one that another run had met behind the call.
func (c *crashes) kill(d deed, point string) bool {
	c.t.Helper()
	defer func() {
		if c.t.Failed() { // also when the test ends here
			c.t.Errorf("died in %s at %s", d.name, point)
		}
	}()
	c.write(strings.NewReplacer(" ", "-", ".", "-").Replace(d.name + "-" + point))
	must(c.t, d.prepare(c))
	must(c.t, os.WriteFile(c.order, []byte(point), 0o600))
	err := d.do(c)
	if err == nil { // what is done behind the answer has its points, too
		within(time.Second/2, func() bool { return !exists(c.order) })
	}
	died := os.Remove(c.order) != nil // the dying removes it
	if died {
		<-c.ended
		c.start()
	}
	if !died && err != nil {
		c.t.Errorf("%s: %v", d.name, err)
	}
	if d.name == "rollback" && (err == nil || slices.Equal(c.read(), c.then)) {
		c.lines = slices.Clone(c.then)
	}
	if d.look != nil {
		d.look(c)
	}
	c.settle(d)
	return died
}

// settle looks that the sandbox is as was acknowledged, removes what the deed may
// have made, and looks that then nothing is left of it.
func (c *crashes) settle(d deed) {
	c.t.Helper()
	if got := c.read(); !slices.Equal(got, c.lines) {
		c.t.Errorf("the file has the lines %q, acknowledged were %q", got, c.lines)
	}
	if got := strings.TrimSpace(c.run("cat /dev/shm/word || true")); d.memory && got != "in memory" {
		c.t.Errorf("the memory holds %q", got)
	}
	c.run("echo in memory > /dev/shm/word")
	for info, err := range c.api.List(c.t.Context(), client.ListOptions{}) {
		must(c.t, err)
		if info.ID != c.sb.ID {
			must(c.t, c.api.Kill(c.t.Context(), info.ID))
		}
	}
	kept := false
	for snap, err := range c.api.Snapshots(c.t.Context(), "") {
		must(c.t, err)
		if kept = kept || snap.ID == c.kept; snap.ID != c.kept {
			must(c.t, c.api.DeleteSnapshot(c.t.Context(), snap.ID))
		}
	}
	if !kept && c.kept != "" {
		c.t.Error("the snapshot is lost")
	}
	left := func() []string { return slices.Concat(c.strays(), c.files()) }
	if !within(stalled, func() bool { return len(left()) == 0 }) {
		c.t.Errorf("left behind: %q", left())
	}
}

// within polls a condition for so long, and says whether it came true.
func within(length time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(length); time.Now().Before(deadline); {
		if ok() {
			return true
		}
		<-time.After(20 * time.Millisecond)
	}
	return false
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// strays are what the host has of machines that are not the sandbox's.
func (c *crashes) strays() []string {
	raw, _ := os.ReadFile(c.order + ".machines")
	mine, found := c.s.machines(), []string(nil)
	for id := range strings.FieldsSeq(string(raw)) {
		if slices.Contains(mine, id) || c.gone[id] {
			continue
		}
		left := leftOf(id)
		c.gone[id] = len(left) == 0 // for ever: an ID names one machine
		found = append(found, left...)
	}
	if len(mine) != 1 {
		found = append(found, fmt.Sprintf("machines %q", mine))
	}
	for _, dir := range []string{"run", "restore", "checkpoint"} {
		entries, _ := filepath.Glob(filepath.Join(c.s.data, "node", dir, "*"))
		for _, e := range entries {
			if !slices.Contains(mine, filepath.Base(e)) {
				found = append(found, e)
			}
		}
	}
	return found
}

// files are what the blobs have of snapshots that no row knows and that are not
// marked as removed: those go with the last machine that needs them.
func (c *crashes) files() []string {
	var found []string
	for id, removed := range snapshotFiles(c.s) {
		if !removed && !c.s.row(c.t, "snapshots", id) {
			found = append(found, "files of snapshot "+id)
		}
	}
	if got := c.imports(); !maps.Equal(got, c.rows) {
		found = append(found, fmt.Sprintf("rows of an import: %v, were %v", got, c.rows))
	}
	tmp, _ := filepath.Glob(filepath.Join(c.s.data, "blobs", "tmp", "*"))
	return append(found, tmp...)
}

// imports counts the rows that an import brings beside its snapshot's.
func (c *crashes) imports() map[string]int {
	return map[string]int{"templates": c.s.count(c.t, "templates", ""), "builds": c.s.count(c.t, "builds", "")}
}

// snapshotFiles are the snapshots of which a server has plain files, and whether
// they are marked as removed.
func snapshotFiles(s *server) map[string]bool {
	ids := map[string]bool{}
	paths, _ := filepath.Glob(filepath.Join(s.data, "blobs", "objects", "snapshots+*"))
	for _, p := range paths {
		id, name, _ := strings.Cut(strings.TrimPrefix(filepath.Base(p), "snapshots+"), "+")
		ids[id] = ids[id] || name == "removed"
	}
	return ids
}

// row says whether a table of the server's database has a row.
func (s *server) row(t *testing.T, table, id string) bool {
	t.Helper()
	return s.count(t, table, " WHERE id = ?", id) == 1
}

func (s *server) count(t *testing.T, table, where string, args ...any) (n int) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(s.data, "hearth.db")+"?mode=ro&_pragma=busy_timeout(5000)")
	must(t, err)
	defer db.Close()
	must(t, db.QueryRowContext(t.Context(), "SELECT count(*) FROM "+table+where, args...).Scan(&n))
	return n
}

func (c *crashes) write(line string) {
	c.t.Helper()
	c.run("echo " + line + " >> log")
	c.lines = append(c.lines, line)
}

func (c *crashes) read() []string {
	c.t.Helper()
	return strings.Fields(c.run("cat log"))
}

// run runs a line in the sandbox, which may be paused, or being settled.
func (c *crashes) run(line string) string {
	c.t.Helper()
	return c.runIn(c.sb.ID, line)
}

func (c *crashes) runIn(id, line string) string {
	c.t.Helper()
	for give := time.Now().Add(stalled); ; {
		sb, err := c.api.Connect(c.t.Context(), id, time.Hour)
		if isConflict(err) && time.Now().Before(give) {
			<-time.After(20 * time.Millisecond)
			continue
		}
		must(c.t, err)
		res, err := sb.Commands.Run(c.t.Context(), line, client.RunOptions{})
		must(c.t, err)
		if res.ExitCode != 0 {
			c.t.Fatalf("%s: %+v", line, res)
		}
		return res.Stdout
	}
}
