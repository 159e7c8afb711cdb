package files

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"hearth/internal/gen/guestv1"
	"hearth/internal/guest/process"
	"hearth/internal/guest/process/rpcerr"
	"hearth/internal/hearth"
)

// watchSpec is what the two ways to watch have in common.
type watchSpec interface {
	GetPath() string
	GetRecursive() bool
	GetIncludeEntry() bool
	GetAllowNetworkMounts() bool
}

// watch reports the changes below one directory.
type watch struct {
	kernel    *fsnotify.Watcher
	root      string // no symbolic links in it
	shown     string // root as the caller wrote it
	recursive bool
	entries   bool
}

// openWatch starts to watch. Every change from its return on is reported by run.
func openWatch(path string, spec watchSpec) (*watch, error) {
	if err := mustBeDir(path, "path "+path+" not a directory"); err != nil {
		return nil, err
	}
	root, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, classify(err, "cannot watch", path)
	}
	if !spec.GetAllowNetworkMounts() && onNetwork(root) {
		return nil, hearth.Errorf(hearth.InvalidArgument, "cannot watch path on network filesystem: %s", path)
	}
	kernel, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, hearth.Wrap(hearth.ResourceExhausted, err, "cannot open another watcher")
	}
	w := &watch{kernel: kernel, root: root, shown: path, recursive: spec.GetRecursive(), entries: spec.GetIncludeEntry()}
	if err := w.add(root, nil); err != nil {
		_ = kernel.Close()
		return nil, err
	}
	return w, nil
}

func onNetwork(path string) bool {
	const smb2 = 0xfe534d42
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return false
	}
	switch uint32(st.Type) {
	case unix.NFS_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, smb2:
		return true
	}
	return false
}

// add watches dir and, if the watch is recursive, all below it. What it finds
// on the way is told to seen, which is nil at the beginning.
func (w *watch) add(dir string, seen func(path string)) error {
	if err := w.kernel.Add(dir); err != nil {
		if errors.Is(err, unix.ENOSPC) {
			return hearth.Errorf(hearth.ResourceExhausted, "too many directories to watch below %s", w.shown)
		}
		if seen != nil && errors.Is(err, unix.ENOENT) {
			return nil // created and removed at once
		}
		return classify(err, "cannot watch", dir)
	}
	if !w.recursive {
		return nil
	}
	found, err := os.ReadDir(dir)
	if err != nil {
		return nil // removed, or not for us: its changes cannot be told
	}
	for _, f := range found {
		path := filepath.Join(dir, f.Name())
		if seen != nil {
			seen(path)
		}
		if f.IsDir() {
			if err := w.add(path, seen); err != nil {
				return err
			}
		}
	}
	return nil
}

// run reports changes to emit until ctx ends or something fails. idle, if not
// nil, is called after every keepalive without a change.
func (w *watch) run(ctx context.Context, keepalive time.Duration, emit func(*guestv1.FilesystemEvent) error, idle func() error) error {
	defer w.kernel.Close()
	tick := time.NewTicker(keepalive)
	defer tick.Stop()
	for {
		var err error
		select {
		case ev, ok := <-w.kernel.Events:
			if !ok {
				return hearth.Errorf(hearth.Internal, "the watcher of %s stopped", w.shown)
			}
			if err = w.report(ev, emit); err == nil {
				tick.Reset(keepalive)
			}
		case err = <-w.kernel.Errors:
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				err = hearth.Errorf(hearth.ResourceExhausted, "more changes below %s than could be reported; some are lost", w.shown)
			}
		case <-tick.C:
			if idle != nil {
				err = idle()
			}
		case <-ctx.Done():
			return ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// report turns one kernel event into the protocol's.
func (w *watch) report(ev fsnotify.Event, emit func(*guestv1.FilesystemEvent) error) error {
	name, err := filepath.Rel(w.root, ev.Name)
	if err != nil || name == "." && !ev.Has(fsnotify.Remove) {
		return nil
	}
	for _, op := range []struct {
		bit fsnotify.Op
		typ guestv1.EventType
	}{
		{fsnotify.Create, guestv1.EventType_EVENT_TYPE_CREATE},
		{fsnotify.Rename, guestv1.EventType_EVENT_TYPE_RENAME},
		{fsnotify.Chmod, guestv1.EventType_EVENT_TYPE_CHMOD},
		{fsnotify.Write, guestv1.EventType_EVENT_TYPE_WRITE},
		{fsnotify.Remove, guestv1.EventType_EVENT_TYPE_REMOVE},
	} {
		if ev.Has(op.bit) {
			if err := emit(w.event(name, op.typ)); err != nil {
				return err
			}
		}
	}
	if ev.Has(fsnotify.Create) && w.recursive {
		if _, ok := isDir(ev.Name); ok {
			return w.grow(ev.Name, emit)
		}
	}
	return nil
}

// grow takes a directory in that appeared later, and makes up for the events of
// what was put into it before it was watched.
func (w *watch) grow(dir string, emit func(*guestv1.FilesystemEvent) error) error {
	var failed error
	err := w.add(dir, func(path string) {
		name, err := filepath.Rel(w.root, path)
		fi, serr := os.Lstat(path)
		if err != nil || serr != nil || failed != nil {
			return
		}
		failed = emit(w.event(name, guestv1.EventType_EVENT_TYPE_CREATE))
		if failed == nil && fi.Mode().IsRegular() && fi.Size() > 0 {
			failed = emit(w.event(name, guestv1.EventType_EVENT_TYPE_WRITE))
		}
	})
	return errors.Join(err, failed)
}

func (w *watch) event(name string, typ guestv1.EventType) *guestv1.FilesystemEvent {
	ev := &guestv1.FilesystemEvent{Name: valid(name), Type: typ}
	gone := typ == guestv1.EventType_EVENT_TYPE_REMOVE || typ == guestv1.EventType_EVENT_TYPE_RENAME
	if w.entries && !gone {
		if e, err := stat(filepath.Join(w.shown, name)); err == nil {
			ev.Entry = e
		}
	}
	return ev
}

// WatchDir streams the changes in a directory. It answers the RPC of that name.
func (s *Service) WatchDir(ctx context.Context, req *connect.Request[guestv1.WatchDirRequest], stream *connect.ServerStream[guestv1.WatchDirResponse]) error {
	path, _, err := s.locate(req.Header(), req.Msg.GetPath())
	if err != nil {
		return rpcerr.From(err)
	}
	w, err := openWatch(path, req.Msg)
	if err != nil {
		return rpcerr.From(err)
	}
	start := &guestv1.WatchDirResponse{Event: &guestv1.WatchDirResponse_Start{Start: &guestv1.WatchDirResponse_StartEvent{}}}
	if err := stream.Send(start); err != nil {
		_ = w.kernel.Close()
		return err
	}
	emit := func(ev *guestv1.FilesystemEvent) error {
		return stream.Send(&guestv1.WatchDirResponse{Event: &guestv1.WatchDirResponse_Filesystem{Filesystem: ev}})
	}
	idle := func() error {
		return stream.Send(&guestv1.WatchDirResponse{Event: &guestv1.WatchDirResponse_Keepalive{Keepalive: &guestv1.WatchDirResponse_KeepAlive{}}})
	}
	return rpcerr.From(w.run(ctx, process.Keepalive(req.Header()), emit, idle))
}
