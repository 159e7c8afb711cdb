// Package tenure lets one process after another own the connections of a
// machine, of which there can be only one at a time. The owner listens on a
// socket in the machine's directory; who wants to be the next connects to it, and
// the owner lets go of everything before it closes that connection. An owner that
// has died listens no more, and is succeeded at once.
package tenure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	socketName = "owner"
	retry      = 5 * time.Millisecond
)

// Tenure is held by the owner of a machine's connections.
type Tenure struct {
	listener *net.UnixListener
	path     string
	dir      *os.File
	ended    chan struct{}
}

// Take succeeds the owner of the machine whose directory is dir, if there is
// one. yield is called when another process succeeds this one, and must let go of
// the machine's connections before it returns. It is not called after Close.
func Take(ctx context.Context, dir string, yield func()) (*Tenure, error) {
	d, path, err := At(dir, socketName)
	if err != nil {
		return nil, err
	}
	t := &Tenure{path: path, dir: d, ended: make(chan struct{})}
	if err := t.succeed(ctx); err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("succeed the machine's owner: %w", err)
	}
	go t.serve(yield)
	return t, nil
}

// succeed becomes the owner. Who else wants to waits for its turn, so that
// nobody takes a new owner's socket for a dead one's.
func (t *Tenure) succeed(ctx context.Context) error {
	for {
		err := unix.Flock(int(t.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(retry):
		}
	}
	defer func() { _ = unix.Flock(int(t.dir.Fd()), unix.LOCK_UN) }()
	if err := ask(ctx, t.path); err != nil {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.path})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false) // the next one's may be there by then
	t.listener = l
	return nil
}

// ask asks the owner, if there is one, to let go, and removes a dead one's socket.
func ask(ctx context.Context, path string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		err = os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err = io.Copy(io.Discard, conn)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, unix.ECONNRESET) { // it ended before it accepted
		return nil
	}
	return err
}

// serve waits for a successor, or for Close.
func (t *Tenure) serve(yield func()) {
	defer close(t.ended)
	defer t.dir.Close()
	conn, err := t.listener.AcceptUnix()
	if err != nil {
		return
	}
	defer conn.Close()
	_ = t.listener.Close()
	_ = os.Remove(t.path)
	yield()
}

// Close ends the tenure without a successor, and waits for one that is being
// let in; so it must not be called by yield. Idempotent.
func (t *Tenure) Close() {
	_ = t.listener.Close()
	<-t.ended
}

// At returns a path to a socket in dir that is short enough for any dir, for as
// long as the file that comes with it is open.
func At(dir, name string) (*os.File, string, error) {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, "", err
	}
	return f, filepath.Join(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), name), nil
}
