package sqlstore_test

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/hearth"
)

// firstSchema makes a database as the first release left it.
func firstSchema(t *testing.T, path string, rows ...string) {
	t.Helper()
	raw, err := os.ReadFile("migrations/00001_first.sql")
	if err != nil {
		t.Fatal(err)
	}
	up, _, _ := strings.Cut(string(raw), "-- +goose Down")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	goose := `CREATE TABLE goose_db_version (id INTEGER PRIMARY KEY AUTOINCREMENT, version_id INTEGER NOT NULL,
		is_applied INTEGER NOT NULL, tstamp TIMESTAMP DEFAULT (datetime('now')));
		INSERT INTO goose_db_version (version_id, is_applied) VALUES (0, 1), (1, 1)`
	for _, stmt := range append([]string{up, goose}, rows...) {
		if _, err := db.Exec(stmt); err != nil {
			t.Fatalf("%v\n%s", err, stmt)
		}
	}
}

// TestRowsOfTheFirstRelease are gVisor's, and stay readable.
func TestRowsOfTheFirstRelease(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hearth.db")
	firstSchema(t, path,
		`INSERT INTO templates VALUES ('tpl', 't1', 1, 'b1', 1, 1)`,
		`INSERT INTO builds VALUES ('b1', 'tpl', 'ready', '', 'key', '{"vcpus":2}', '["layers/a"]', 's1', '{"A":"b"}', 'user', '/code', 1, 2),
			('b2', 'tpl', 'error', 'why', 'key', '{}', 'null', '', 'null', '', '', 1, 2)`,
		`INSERT INTO sandboxes VALUES ('i1', 3, 1, 't1', 'tpl', 'base', 'b1', 'n1', '', 'running', '', '{"vcpus":2}', '{}',
			'null', 'null', 0, 'kill', 0, 1, 1, 1, 1)`)
	s := open(t, path)
	ctx := context.Background()
	b, err := s.Build(ctx, "b1")
	if err != nil || b.Warm["gvisor"] != "s1" || len(b.Warm) != 1 || b.Driver != "" || b.Env["A"] != "b" || b.Workdir != "/code" {
		t.Errorf("build %+v, %v", b, err)
	}
	if b, err = s.Build(ctx, "b2"); err != nil || len(b.Warm) != 0 || b.Reason != "why" {
		t.Errorf("failed build %+v, %v", b, err)
	}
	sb, err := s.Sandbox(ctx, "i1")
	if err != nil || sb.Driver != "gvisor" || sb.Isolation != hearth.UserKernel || sb.Wanted != "" || sb.Resources.VCPUs != 2 {
		t.Errorf("sandbox %+v, %v", sb, err)
	}
}
