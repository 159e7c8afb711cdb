package daemon

import (
	"context"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/guest"
	"hearth/internal/guest/files"
	"hearth/internal/hearth"
)

// inventoryTime bounds how long the root is walked.
const inventoryTime = 50 * time.Second

// inventory lists the files of the root, for the host, in a machine that was started
// to be looked at: the daemon is sealed, and what else runs in it is stopped first,
// so that files stay as they are. Nothing thaws it again.
func (d *Daemon) inventory(w http.ResponseWriter, r *http.Request) {
	d.state.initMu.Lock()
	defer d.state.initMu.Unlock()
	now := d.state.get()
	if now.control != "" && !now.host(r.Header.Get(guest.ControlHeader)) {
		unauthorized(w, "the control secret is missing or wrong")
		return
	}
	if !now.sealed {
		files.WriteError(w, http.StatusConflict, "the sandbox is in use")
		return
	}
	if d.system != nil {
		d.system.stopOthers()
	}
	ctx, cancel := context.WithTimeout(r.Context(), inventoryTime)
	defer cancel()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	out := guest.NewInventoryWriter(w)
	walk(ctx, d.root, out)
	if err := out.End(); err != nil {
		d.log.Debug("an inventory was not read", "err", err)
	}
}

// stopOthers stops every process but this one and the first of the machine, which
// keeps it.
func (s *System) stopOthers() {
	if os.Getppid() == 1 { // elsewhere it would stop a stranger's
		_ = unix.Kill(-1, unix.SIGSTOP) // there may be none
	}
}

// unlisted are directories whose content is the kernel's or the daemon's, not the
// sandbox's.
func unlisted(path string) bool {
	switch path {
	case "/proc", "/sys", "/dev", "/.guest":
		return true
	}
	return false
}

// walk adds what is below root. What cannot be read is left out.
func walk(ctx context.Context, root string, out *guest.InventoryWriter) {
	_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			out.Skip()
			return filepath.SkipAll
		}
		if err != nil {
			return nil
		}
		if unlisted(path) {
			return filepath.SkipDir
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		if entry, ok := entryOf(path, info); ok && !out.Add(entry) {
			return filepath.SkipAll
		}
		return nil
	})
}

func entryOf(path string, info fs.FileInfo) (hearth.Entry, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return hearth.Entry{}, false
	}
	e := hearth.Entry{Path: path, Kind: hearth.OtherEntry, Mode: st.Mode & 0o7777, MTime: st.Mtim.Nano(), UID: st.Uid, GID: st.Gid}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		e.Kind, e.Size = hearth.RegularFile, st.Size
	case syscall.S_IFDIR:
		e.Kind = hearth.Directory
	case syscall.S_IFLNK:
		e.Kind = hearth.Symlink
		e.Target, _ = os.Readlink(path)
	}
	return e, true
}
