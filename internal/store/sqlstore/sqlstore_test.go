package sqlstore_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/store"
	"hearth/internal/store/sqlstore"
	"hearth/internal/store/storetest"
)

func open(t testing.TB, path string) *sqlstore.Store {
	t.Helper()
	s, err := sqlstore.Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		return open(t, filepath.Join(t.TempDir(), "hearth.db"))
	})
}

func TestReopen(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "odd name ?#%41.db")
	s := open(t, path)
	if err := s.CreateSandbox(ctx, storetest.Sandbox("ia")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, path).Sandbox(ctx, "ia"); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, want 0600", info.Mode())
	}
	if _, err := s.Sandbox(ctx, "ia"); hearth.KindOf(err) != hearth.Unavailable {
		t.Errorf("a closed store answers %v, want Unavailable", err)
	}
	if err := s.CreateSandbox(ctx, storetest.Sandbox("ib")); hearth.KindOf(err) != hearth.Unavailable {
		t.Errorf("a closed store answers a write with %v, want Unavailable", err)
	}
}

// TestCrash copies the files of an open database, as a kill would leave them,
// and cuts the log at every kind of place, as a power cut would: what is found
// is always a beginning of what was written, and all of it when nothing is cut.
func TestCrash(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "hearth.db")
	s := open(t, path)
	const rows = 40
	for i := range rows {
		sb := storetest.Sandbox(fmt.Sprintf("i%02d", i))
		sb.StartedAt = sb.StartedAt.Add(time.Duration(i) * time.Second)
		if err := s.CreateSandbox(ctx, sb); err != nil {
			t.Fatal(err)
		}
	}
	main, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	wal, err := os.ReadFile(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	last := -1
	for cut := len(wal) / 3; cut < len(wal)+997; cut += 997 * 24 {
		cut := min(cut, len(wal))
		copied := filepath.Join(t.TempDir(), "hearth.db")
		for name, data := range map[string][]byte{copied: main, copied + "-wal": wal[:cut]} {
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		list, _, err := open(t, copied).ListSandboxes(ctx, store.SandboxFilter{OldestFirst: true}, store.Page{})
		if err != nil {
			t.Fatalf("log cut at %d of %d: %v", cut, len(wal), err)
		}
		for i, sb := range list {
			if want := fmt.Sprintf("i%02d", i); string(sb.ID) != want {
				t.Fatalf("log cut at %d: row %d is %s, want %s", cut, i, sb.ID, want)
			}
		}
		if len(list) < last {
			t.Errorf("log cut at %d: %d rows, fewer than with less of the log", cut, len(list))
		}
		last = len(list)
	}
	whole := filepath.Join(t.TempDir(), "hearth.db")
	for name, data := range map[string][]byte{whole: main, whole + "-wal": wal} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := open(t, whole).CountSandboxes(ctx, store.SandboxFilter{}); err != nil || n != rows {
		t.Errorf("%d rows after a kill, want %d (%v)", n, rows, err)
	}
}

func TestNotADatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hearth.db")
	if err := os.WriteFile(path, make([]byte, 9000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("this is no database, however long one makes it"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := sqlstore.Open(context.Background(), path); hearth.KindOf(err) != hearth.FailedPrecondition {
		if err == nil {
			s.Close()
		}
		t.Errorf("a text file as a database: %v", err)
	}
	if s, err := sqlstore.Open(context.Background(), filepath.Join(path, "below")); hearth.KindOf(err) != hearth.FailedPrecondition {
		if err == nil {
			s.Close()
		}
		t.Errorf("path below a file: %v", err)
	}
}

// TestNewerSchema opens a file that a later release has migrated.
func TestNewerSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hearth.db")
	open(t, path).Close()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)"); err != nil {
		t.Fatal(err)
	}
	s, err := sqlstore.Open(context.Background(), path)
	if hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("error %v, want FailedPrecondition", err)
	}
	if err == nil {
		s.Close()
	}
}

// TestOpenAtOnce opens and migrates one file from several places.
func TestOpenAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hearth.db")
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			s, err := sqlstore.Open(context.Background(), path)
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			if err := s.CreateSandbox(context.Background(), storetest.Sandbox(fmt.Sprintf("i%d", i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestDiskFull fills the disk: the error says so, what was written is still
// there, and with room again writing goes on.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	ctx := context.Background()
	s, err := sqlstore.Open(ctx, filepath.Join(dir, "hearth.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	written := 0
	for ; err == nil && written < 10_000; written++ {
		sb := storetest.Sandbox(fmt.Sprintf("i%05d", written))
		sb.Env = map[string]string{"big": strings.Repeat("x", 20_000)}
		err = s.CreateSandbox(ctx, sb)
	}
	if hearth.KindOf(err) != hearth.ResourceExhausted {
		t.Errorf("after %d rows: %v, want ResourceExhausted", written, err)
	}
	if n, err := s.CountSandboxes(ctx, store.SandboxFilter{}); err != nil || n != written-1 {
		t.Errorf("%d rows on a full disk (%v), want %d", n, err, written-1)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateSandbox(ctx, storetest.Sandbox("ilast")); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// TestWaitsItsTurn cancels writers that queue: the error is the context's kind
// and the row is not there.
func TestWaitsItsTurn(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "hearth.db"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := s.CreateSandbox(ctx, storetest.Sandbox("ia"))
	if hearth.KindOf(err) != hearth.Canceled {
		t.Errorf("create with an ended context: %v", err)
	}
	if _, err := s.Sandbox(context.Background(), "ia"); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("row after a cancelled create: %v", err)
	}
}

// Benchmark measures a create, a page and a count in a store of few rows and of
// many; they should not differ by more than half.
func Benchmark(b *testing.B) {
	ctx := context.Background()
	for _, rows := range []int{10, 10_000} {
		s := open(b, filepath.Join(b.TempDir(), "hearth.db"))
		for i := range rows {
			sb := storetest.Sandbox(fmt.Sprintf("i%08d", i))
			sb.StartedAt = sb.StartedAt.Add(time.Duration(i) * time.Millisecond)
			sb.Metadata = map[string]string{"env": "prod", "user": fmt.Sprint(i / 10)}
			if err := s.CreateSandbox(ctx, sb); err != nil {
				b.Fatal(err)
			}
		}
		live := []hearth.State{hearth.Running, hearth.Paused}
		list := func(name string, f store.SandboxFilter, cursor string) {
			b.Run(fmt.Sprintf("%s/%d", name, rows), func(b *testing.B) {
				for b.Loop() {
					list, _, err := s.ListSandboxes(ctx, f, store.Page{Limit: 10, Cursor: cursor})
					if err != nil || len(list) != 10 {
						b.Fatal(len(list), err)
					}
				}
			})
		}
		list("list", store.SandboxFilter{Team: "t1", States: live}, "")
		list("list common metadata", store.SandboxFilter{Team: "t1", States: live, Metadata: map[string]string{"env": "prod"}}, "")
		list("list rare metadata", store.SandboxFilter{Team: "t1", States: live, Metadata: map[string]string{"user": "0"}}, "")
		b.Run(fmt.Sprintf("get/%d", rows), func(b *testing.B) {
			for b.Loop() {
				if _, err := s.Sandbox(ctx, "i00000003"); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("count/%d", rows), func(b *testing.B) {
			for b.Loop() {
				if _, err := s.CountSandboxes(ctx, store.SandboxFilter{Team: "t1", States: live}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("create and stop/%d", rows), func(b *testing.B) {
			for b.Loop() {
				sb := storetest.Sandbox(string(hearth.NewSandboxID()))
				if err := s.CreateSandbox(ctx, sb); err != nil {
					b.Fatal(err)
				}
				_, err := s.UpdateSandbox(ctx, sb.ID, func(sb *hearth.Sandbox) error { sb.State = hearth.Stopped; return nil })
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
