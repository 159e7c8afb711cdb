package gvisor_test

import (
	"context"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/driver/gvisor"
)

// python makes an image with the host's Python and testdata/memory.py, and
// returns a lab whose machines have it as their root.
func (l *lab) python(t *testing.T) *lab {
	t.Helper()
	const interpreter = "/usr/bin/python3"
	if _, err := os.Stat(interpreter); err != nil {
		t.Skip("gvisor: no python3 to run in a machine")
	}
	dir := filepath.Join(l.dir, "py")
	for _, d := range []string{"root", "tmp", "etc", "mnt", "var"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	stdlib, err := exec.Command(interpreter, "-S", "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))").Output()
	must(t, err)
	lib := strings.TrimSpace(string(stdlib))
	modules, err := filepath.Glob(filepath.Join(lib, "lib-dynload", "*.so"))
	must(t, err)
	needed, err := exec.Command("ldd", append(modules, interpreter)...).CombinedOutput()
	if err != nil && len(needed) == 0 {
		t.Fatal(err)
	}
	install(t, interpreter, filepath.Join(dir, "python3"))
	for _, m := range regexp.MustCompile(`(?m)(?:=> |^\s+)(/\S+) \(`).FindAllStringSubmatch(string(needed), -1) {
		install(t, m[1], filepath.Join(dir, m[1]))
	}
	must(t, filepath.WalkDir(lib, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && (e.Name() == "__pycache__" || e.Name() == "test" || strings.HasSuffix(e.Name(), "-packages") || strings.HasPrefix(e.Name(), "config-")):
			return filepath.SkipDir
		case e.Type().IsRegular():
			install(t, path, filepath.Join(dir, path))
		}
		return nil
	}))
	install(t, "testdata/memory.py", filepath.Join(dir, "memory.py"))
	image := filepath.Join(l.dir, "python.erofs")
	run(t, "mkfs.erofs", "--quiet", "-E", "noinline_data", image, dir)
	must(t, os.RemoveAll(dir))
	other := *l
	other.root = image
	return &other
}

func install(t *testing.T, from, to string) {
	t.Helper()
	raw, err := os.ReadFile(from)
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(to), 0o755))
	must(t, os.WriteFile(to, raw, 0o755))
}

// torture is a machine in which memory.py runs, or a clone of one.
type torture struct {
	driver.Machine
	generation int
}

var players = [...]string{"parent", "child1", "child2", "child3"}

func (m *torture) ask(t *testing.T, method, path string, form url.Values) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return drivertest.Open(m.Machine).Ask(ctx, method, path, form)
}

func (m *torture) await(t *testing.T, file string) string {
	t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for {
		text, err := m.ask(t, "GET", "/file", url.Values{"path": {"/tmp/" + file}})
		if err == nil {
			return text
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s of generation %d does not come: %v", file, m.generation, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// play lets every process do its part of the next generation.
func (m *torture) play(t *testing.T) {
	t.Helper()
	m.generation++
	_, err := m.ask(t, "POST", "/file", url.Values{"path": {fmt.Sprintf("/tmp/go.%d", m.generation)}})
	must(t, err)
	for _, p := range players {
		if text := m.await(t, fmt.Sprintf("res.%s.%d", p, m.generation)); text != "ok" {
			t.Errorf("%s of generation %d: %s", p, m.generation, text)
		}
	}
}

func (m *torture) take(t *testing.T) *driver.Checkpoint {
	t.Helper()
	must(t, m.Freeze(t.Context()))
	c, err := m.Checkpoint(t.Context(), t.TempDir())
	must(t, err)
	return c
}

// world makes tortures in slots of their own.
type world struct {
	l      *lab
	number int
}

func (w *world) start(t *testing.T, d driver.Driver, from *driver.Checkpoint, generation int) *torture {
	t.Helper()
	w.number++
	spec := w.l.spec(t, fmt.Sprintf("conf-memory-%d", w.number), 150+w.number)
	spec.Resources.MemoryMiB = 256
	spec.From = from
	m, err := d.Start(t.Context(), spec)
	must(t, err)
	t.Cleanup(func() { must(t, m.Close(context.Background())) })
	return &torture{Machine: m, generation: generation}
}

// seed boots a machine and lets memory.py fill its memory.
func (w *world) seed(t *testing.T) *driver.Checkpoint {
	t.Helper()
	m := w.start(t, w.l.driver(t), nil, 0)
	_, err := m.ask(t, "POST", "/start", url.Values{"arg": {"/python3", "-B", "/memory.py", "/tmp"}})
	must(t, err)
	m.await(t, "ready")
	c := m.take(t)
	must(t, m.Close(t.Context()))
	return c
}

func pages(t *testing.T, c *driver.Checkpoint) int64 {
	t.Helper()
	info, err := os.Stat(filepath.Join(c.Dir, "pages.img"))
	must(t, err)
	return info.Size()
}

func sums(t *testing.T, c *driver.Checkpoint) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", "cd "+c.Dir+" && sha256sum *").Output()
	must(t, err)
	return string(out)
}

// Memory is byte for byte what its processes made it, through generations of
// checkpoints that lie on each other, restored with sharing and without; nobody's
// writes reach a base file.
func TestMemoryOverGenerations(t *testing.T) {
	w := &world{l: newLab(t).python(t)}
	shared := w.l.driver(t)
	cfg := w.l.config(t)
	cfg.Unshared = true
	plain, err := gvisor.New(cfg)
	must(t, err)
	sharing := caps(t, shared).SharedMemory

	base := w.seed(t)
	before, c := sums(t, base), base
	for generation := range 4 {
		drivers := map[string]driver.Driver{"as plain gVisor does": plain, "shared": shared}
		clones := map[string]*torture{}
		for how, d := range drivers {
			dropCaches(t, c)
			clones[how] = w.start(t, d, c, generation)
		}
		for how, m := range clones {
			t.Run(fmt.Sprintf("generation %d, %s", generation+1, how), m.play)
		}
		next := clones["shared"].take(t)
		if refers := next.Base != nil; refers != sharing {
			t.Fatalf("checkpoint of generation %d refers to another: %t; memory is shared: %t", generation+1, refers, sharing)
		}
		if sharing {
			next.Base = c // whoever has the files says where they are
			if all, now := pages(t, base), pages(t, next); now > all*3/4 {
				t.Errorf("generation %d wrote %d bytes of pages over a base of %d", generation+1, now, all)
			}
		}
		must(t, clones["shared"].Thaw(t.Context()))
		clones["shared"].play(t) // the original goes on
		for _, m := range clones {
			must(t, m.Close(t.Context()))
		}
		c = next
	}
	if after := sums(t, base); after != before {
		t.Errorf("a base was changed:\n%s\n%s", before, after)
	}
}

func caps(t testing.TB, d driver.Driver) driver.Capabilities {
	t.Helper()
	c, err := d.Probe(t.Context())
	must(t, err)
	return c
}

// dropCaches makes the host forget the checkpoints' files, as far as nobody maps them.
func dropCaches(t *testing.T, c *driver.Checkpoint) {
	t.Helper()
	for ; c != nil; c = c.Base {
		for _, name := range c.Files {
			evict(t, filepath.Join(c.Dir, name))
		}
	}
}
