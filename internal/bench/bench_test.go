package bench

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hearth/internal/config"
	"hearth/internal/hearth"
)

func valid() Options {
	return Options{Rows: []string{"1", "8"}, Runs: 1, Sandboxes: 1, Limit: time.Minute}
}

func TestOptions(t *testing.T) {
	if err := valid().check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Options){
		"rows":      func(o *Options) { o.Rows = []string{"1", "99"} },
		"runs":      func(o *Options) { o.Runs = 0 },
		"sandboxes": func(o *Options) { o.Sandboxes = maxSandboxes + 1 },
		"limit":     func(o *Options) { o.Limit = -time.Second },
	} {
		o := valid()
		change(&o)
		if err := o.check(); hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), name+":") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestRunNeedsARunningServerWhenOneIsNamed(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	c := config.Default()
	c.Data = t.TempDir()
	o := valid()
	o.Running = true
	err := Run(t.Context(), &c, o, io.Discard, io.Discard)
	if hearth.KindOf(err) != hearth.NotFound || !strings.Contains(err.Error(), c.Data) {
		t.Errorf("got %v, want not found", err)
	}
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestEmptyPoolNeedsAServerOfItsOwn(t *testing.T) {
	c := config.Default()
	c.Data = t.TempDir()
	o := valid()
	o.Running, o.Rows = true, []string{"4"}
	var out bytes.Buffer
	if err := Run(t.Context(), &c, o, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "skipped: a running server keeps its pool") {
		t.Errorf("got %s", &out)
	}
}

func TestLastRecord(t *testing.T) {
	m, ok := lastRecord([]byte("\n{\"phase\":\"pooled\",\"handle\":{\"id\":\"m1\"}}\n\n" +
		"{\"phase\":\"running\",\"handle\":{\"id\":\"m1\",\"dir\":\"/d\"},\"restored\":\"s1\",\"sandbox\":{\"id\":\"i1\"}}\n\n{\"phase\":\"end"))
	if !ok || m.Phase != "running" || m.Sandbox == nil || m.Sandbox.ID != "i1" || m.Restored != "s1" || m.Handle.Dir != "/d" {
		t.Errorf("got %+v, %t", m, ok)
	}
	if _, ok := lastRecord([]byte("{\"pha")); ok {
		t.Error("a torn record was read")
	}
}

func TestReadyMachines(t *testing.T) {
	c := config.Default()
	c.Data = t.TempDir()
	dir := filepath.Join(c.Data, "node", "machines")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for id, phase := range map[string]string{"m1": "pooled", "m2": "running", "m3": "pooled"} {
		text := `{"phase":"` + phase + `","handle":{"id":"` + id + `"},"sandbox":{"id":"i-` + id + `"}}` + "\n"
		if err := os.WriteFile(filepath.Join(dir, id+".json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := &server{cfg: &c}
	if got := s.ready(); len(got) != 2 || !got["m1"] || !got["m3"] {
		t.Errorf("ready: got %v", got)
	}
	if m, err := s.of("i-m2"); err != nil || m.Handle.ID != "m2" {
		t.Errorf("of: got %+v, %v", m, err)
	}
	if _, err := s.of("i-none"); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("of a stranger: got %v", err)
	}
}

func TestRootImage(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		`{"annotations":{"dev.gvisor.spec.rootfs.source":"/l.erofs"}}`: "/l.erofs",
		`{"annotations":{}}`: "",
		`{`:                  "",
	} {
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := rootImage(dir); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v", text, got, err)
		}
	}
}

func TestSettingsStayOutOfTheEnvironment(t *testing.T) {
	t.Setenv("HEARTH_LISTEN", "127.0.0.1:1")
	for _, kv := range plainEnviron() {
		if strings.HasPrefix(kv, "HEARTH_") {
			t.Errorf("%s is passed on", kv)
		}
	}
}

func TestRowsAreInTheOrderOfTheTargets(t *testing.T) {
	want := "1 2 3 4 5 6 7 8 8b 9 10 11 12 13 14 15 16"
	if got := strings.Join(numbers(), " "); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestOvertakes(t *testing.T) {
	for want, ends := range map[int][]time.Duration{0: {1, 2, 3}, 1: {1, 3, 2}, 2: {3, 2, 1}} {
		if got := overtakes(ends); got != want {
			t.Errorf("%v: got %d, want %d", ends, got, want)
		}
	}
	if got := overtakes(nil); got != 0 {
		t.Errorf("nobody: got %d", got)
	}
}
