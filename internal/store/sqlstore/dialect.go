package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"hearth/internal/hearth"
)

// This file is all that knows which database is underneath.

const gooseDialect = goose.DialectSQLite3

// Statements that make the commits of the write connection wait for the disk,
// or not. See the package comment.
const (
	syncCommits     = "PRAGMA synchronous = FULL"
	unsyncedCommits = "PRAGMA synchronous = NORMAL"
)

// openSQLite returns the one write connection and the pool of readers.
func openSQLite(path string) (write, read *sql.DB, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, nil, hearth.Wrap(hearth.InvalidArgument, err, "the path of the metadata store is not usable")
	}
	// Environment variables of sandboxes are in the file. The -wal and -shm
	// files get its mode.
	// A file that is there is not touched: to close it would drop the locks that
	// SQLite holds on it in this process.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, nil, hearth.Wrap(hearth.FailedPrecondition, err, "the metadata store %s cannot be opened", path)
	}
	dsn := func(pragmas ...string) string {
		q := url.Values{"_txlock": {"immediate"}}
		for _, p := range append(pragmas, "busy_timeout(5000)", "foreign_keys(1)", "temp_store(memory)") {
			q.Add("_pragma", p)
		}
		return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}).String()
	}
	write, err = sql.Open("sqlite", dsn("journal_mode(wal)", "synchronous(normal)"))
	if err != nil {
		return nil, nil, failed(err, "the metadata store %s cannot be opened", path)
	}
	write.SetMaxOpenConns(1)
	read, err = sql.Open("sqlite", dsn("query_only(1)"))
	if err != nil {
		write.Close()
		return nil, nil, failed(err, "the metadata store %s cannot be opened", path)
	}
	readers := max(4, runtime.GOMAXPROCS(0))
	read.SetMaxOpenConns(readers)
	read.SetMaxIdleConns(readers)
	return write, read, nil
}

// failed gives a database error its kind. msg is what a caller may see.
func failed(err error, msg string, args ...any) error {
	if _, ours := errors.AsType[*hearth.Error](err); ours {
		return err
	}
	kind := hearth.Internal
	switch {
	case errors.Is(err, context.Canceled):
		kind = hearth.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		kind = hearth.DeadlineExceeded
	case errors.Is(err, sql.ErrConnDone), err.Error() == "sql: database is closed":
		kind = hearth.Unavailable
	default:
		if e, ok := errors.AsType[*sqlite.Error](err); ok {
			switch e.Code() & 0xff { // the primary code
			case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN:
				kind = hearth.Unavailable
			case sqlite3.SQLITE_INTERRUPT:
				kind = hearth.Canceled
			case sqlite3.SQLITE_NOTADB:
				return hearth.Wrap(hearth.FailedPrecondition, err, msg+": its file is not a database", args...)
			case sqlite3.SQLITE_FULL:
				return hearth.Wrap(hearth.ResourceExhausted, err, msg+": its disk is full", args...)
			}
		}
	}
	return hearth.Wrap(kind, err, msg, args...)
}

// taken reports whether err says that a unique value exists already.
func taken(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && (e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

// dangling reports whether err says that a referenced row does not exist.
func dangling(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && e.Code() == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
}
