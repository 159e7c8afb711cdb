// Package sqlstore is the store contract on a SQL database; today SQLite, in
// one file beside the rest of Hearth's data.
//
// # Durability
//
// The file is in write-ahead mode: a commit is there after the process was
// killed, always. After a power cut, what was committed with an fsync is there
// and what came after the last fsync may be gone, as a whole and from the end.
// The rows of sandboxes are written without one while they have a machine: the
// power cut that could lose them has killed it, so that nothing of them is worth
// keeping; of a resumed one the paused row and its snapshot are left, as long as
// the snapshot's deletion, which is synced with all before it, has not begun.
// Everything else is synced before the call returns: templates, builds, keys,
// snapshots, a sandbox becoming paused, and one being stopped with a snapshot.
// So a create costs no fsync, nor does a resume before it answers.
//
// # Statements
//
// The queries run on PostgreSQL as they are but for their placeholders; what
// differs between databases is in dialect.go.
package sqlstore

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/pressly/goose/v3"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is a store.Store on a SQL database. Its methods are safe for concurrent use.
type Store struct {
	read  *sql.DB // any number of connections
	write *sql.DB // one connection: SQLite has one writer, and waiting here is fair

	// What each create and kill of a sandbox runs. To prepare a statement takes longer
	// than to run it.
	selectSandbox, insertSandbox, updateSandbox *sql.Stmt
}

var _ store.Store = (*Store)(nil)

// Open opens the SQLite database in the file at path, which is made if need be
// with mode 0600, and brings its schema up to date. A file of a newer Hearth is
// refused with FailedPrecondition.
func Open(ctx context.Context, path string) (*Store, error) {
	write, read, err := openSQLite(path)
	if err != nil {
		return nil, err
	}
	s := &Store{read: read, write: write}
	if err := migrate(ctx, write); err != nil {
		s.Close()
		return nil, err
	}
	if err := s.prepare(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// prepare makes the statements that are kept; they go with their database.
func (s *Store) prepare(ctx context.Context) error {
	var errs [3]error
	s.selectSandbox, errs[0] = s.read.PrepareContext(ctx, selectSandbox)
	s.insertSandbox, errs[1] = s.write.PrepareContext(ctx, insertSandbox)
	s.updateSandbox, errs[2] = s.write.PrepareContext(ctx, updateSandbox)
	if err := errors.Join(errs[:]...); err != nil {
		return failed(err, "the metadata store could not be opened")
	}
	return nil
}

// migrate brings the schema up to date. Another process may be doing the same:
// each migration is one transaction, and who loses looks again.
func migrate(ctx context.Context, db *sql.DB) error {
	const tries = 10
	for n := 1; ; n++ {
		err := migrateOnce(ctx, db)
		if err == nil || n == tries || ctx.Err() != nil || hearth.KindOf(err) == hearth.FailedPrecondition {
			return err
		}
	}
}

func migrateOnce(ctx context.Context, db *sql.DB) error {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(gooseDialect, db, dir)
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "the metadata store's migrations are broken")
	}
	have, newest, err := p.GetVersions(ctx)
	if err != nil {
		return failed(err, "the metadata store could not be read")
	}
	if have > newest {
		return hearth.Errorf(hearth.FailedPrecondition,
			"the metadata store has schema version %d, this Hearth knows %d: it was written by a newer release; use that one", have, newest)
	}
	if _, err := p.Up(ctx); err != nil {
		return failed(err, "the metadata store could not be brought to schema version %d", newest)
	}
	return nil
}

// Ping asks the database for a sign of life.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	if err := s.read.QueryRowContext(ctx, "SELECT 1").Scan(&one); err != nil {
		return failed(err, "the metadata store does not answer")
	}
	return nil
}

// Close waits for statements under way and closes the database.
func (s *Store) Close() error {
	err := s.read.Close()
	if werr := s.write.Close(); err == nil {
		err = werr
	}
	return err
}

// durability says whether a commit must survive a power cut.
type durability int

const (
	volatile durability = iota // survives the process, not the host
	durable
)

// change runs fn in one write transaction. Once the turn has come it ignores
// the end of ctx, so that a caller never has to wonder whether it was committed.
func (s *Store) change(ctx context.Context, d durability, fn func(tx *sql.Tx) error) error {
	conn, err := s.write.Conn(ctx)
	if err != nil {
		return failed(err, "the metadata store is busy")
	}
	defer conn.Close()
	ctx = context.WithoutCancel(ctx)
	if d == durable {
		if _, err := conn.ExecContext(ctx, syncCommits); err != nil {
			return failed(err, "the metadata store could not be written")
		}
		defer conn.ExecContext(ctx, unsyncedCommits)
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return failed(err, "the metadata store could not be written")
	}
	defer tx.Rollback()
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return failed(err, "the metadata store could not be written")
	}
	return nil
}

// exec runs a statement and returns how many rows it touched.
func exec(tx *sql.Tx, query string, args ...any) (int64, error) {
	return touched(tx.Exec(query, args...))
}

// touched is how many rows a statement touched.
func touched(res sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, failed(err, "the metadata store could not be written")
	}
	n, err := res.RowsAffected()
	if err != nil {
		return 0, failed(err, "the metadata store could not be written")
	}
	return n, nil
}

// scanner is a *sql.Row or *sql.Rows.
type scanner interface{ Scan(dest ...any) error }

// querier is a *sql.DB or *sql.Tx.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// collect runs a query and scans every row of its result.
func collect[T any](ctx context.Context, q querier, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, failed(err, "the metadata store could not be read")
	}
	defer rows.Close()
	var list []T
	for rows.Next() {
		item, err := scan(rows)
		if err != nil {
			return nil, failed(err, "the metadata store could not be read")
		}
		list = append(list, item)
	}
	if err := rows.Err(); err != nil {
		return nil, failed(err, "the metadata store could not be read")
	}
	return list, nil
}

// nanos is the stored form of a time.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// at scans the stored form of a time.
type at struct{ t *time.Time }

func (a at) Scan(src any) error {
	n, ok := src.(int64)
	if !ok {
		return fmt.Errorf("a time is stored as %T", src)
	}
	*a.t = time.Time{}
	if n != 0 {
		*a.t = time.Unix(0, n).UTC()
	}
	return nil
}

// inJSON is the stored form of a map, a slice or a small struct.
func inJSON(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", hearth.Wrap(hearth.Internal, err, "a row could not be encoded")
	}
	return string(b), nil
}

// fromJSON scans what inJSON made.
type fromJSON struct{ v any }

func (j fromJSON) Scan(src any) error {
	switch b := src.(type) {
	case string:
		return json.Unmarshal([]byte(b), j.v)
	case []byte:
		return json.Unmarshal(b, j.v)
	}
	return fmt.Errorf("JSON is stored as %T", src)
}
