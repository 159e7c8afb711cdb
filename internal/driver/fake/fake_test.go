package fake_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"hearth/internal/driver"
	"hearth/internal/driver/fake"
	"hearth/internal/hearth"
	"hearth/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func spec(t *testing.T, id string) driver.Spec {
	return driver.Spec{ID: id, Dir: t.TempDir(), Resources: hearth.Resources{VCPUs: 1, MemoryMiB: 64, DiskMiB: 64}}
}

func echo(g *fake.Guest) {
	g.ServeHTTP(80, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, g.Load("k")) }))
}

func TestScriptedFailuresComeInOrder(t *testing.T) {
	h := fake.NewHost(fake.Config{Program: echo})
	d := fake.New(h)
	boom := errors.New("boom")
	h.Fail(fake.Start, boom, nil)
	if _, err := d.Start(t.Context(), spec(t, "a")); !errors.Is(err, boom) {
		t.Fatalf("first Start: %v, want boom", err)
	}
	m, err := d.Start(t.Context(), spec(t, "b"))
	if err != nil {
		t.Fatal(err)
	}
	h.Fail(fake.Checkpoint, boom)
	if err := m.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Checkpoint(t.Context(), t.TempDir()); !errors.Is(err, boom) {
		t.Fatalf("Checkpoint: %v, want boom", err)
	}
	if !h.Frozen("b") {
		t.Fatal("the machine thawed when its checkpoint failed")
	}
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := h.Machines(); len(left) != 0 {
		t.Fatalf("left: %v", left)
	}
}

func TestHTTPOverADialedConnection(t *testing.T) {
	h := fake.NewHost(fake.Config{Program: echo})
	m, err := fake.New(h).Start(t.Context(), spec(t, "a"))
	if err != nil {
		t.Fatal(err)
	}
	h.Guest("a").Put("k", "hello")
	c, err := m.Dial(t.Context(), 80)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	raw, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(raw), "hello") {
		t.Fatalf("got %q, %v", raw, err)
	}
	if _, err := m.Dial(t.Context(), 81); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("closed port: %v", err)
	}
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}
