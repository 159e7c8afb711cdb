package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"hearth/client"
	"hearth/internal/hearth"
)

type snapshotExportCmd struct {
	dataFlag
	ID   string `arg:"" help:"Snapshot, by ID or name."`
	File string `arg:"" help:"Where to; - is the standard output. A file that is there is replaced."`
}

// Run leaves the whole file or, when it fails, what was there before.
func (s *snapshotExportCmd) Run(in *invocation) error {
	c, err := s.server(in)
	if err != nil {
		return err
	}
	export := func(w io.Writer) error {
		out := &sink{w: w}
		err := c.Export(in.ctx, s.ID, out)
		if out.err != nil {
			return fileError(out.err, "%s cannot be written", s.File)
		}
		if _, answered := errors.AsType[*client.Error](err); err != nil && !answered && out.begun {
			return hearth.Wrap(hearth.Unavailable, err, "the server cut the export off; its log says why")
		}
		return remote(err)
	}
	if s.File == "-" {
		return export(in.out)
	}
	return replace(s.File, export)
}

// sink remembers whether there was something to write, and whether that failed.
type sink struct {
	w     io.Writer
	begun bool
	err   error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.begun, s.err = true, err
	return n, err
}

// replace makes a file, whole or not at all, that only its owner can read.
func replace(path string, write func(io.Writer) error) (err error) {
	if info, serr := os.Stat(path); serr == nil && !info.Mode().IsRegular() {
		return hearth.Errorf(hearth.InvalidArgument, "%s is there already, and no file; - is the standard output", path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return fileError(err, "%s cannot be written", path)
	}
	defer os.Remove(f.Name()) // gone by then, if all went well
	defer f.Close()
	if err := write(f); err != nil {
		return err
	}
	err = errors.Join(f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return fileError(err, "%s cannot be written", path)
}

// fileError says what a file of the caller's failed with.
func fileError(err error, format, path string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrNotExist):
		return hearth.Errorf(hearth.NotFound, format+": no such file or directory", path)
	case errors.Is(err, os.ErrPermission):
		return hearth.Errorf(hearth.PermissionDenied, format+": permission denied", path)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return hearth.Errorf(hearth.ResourceExhausted, format+": the disk is full", path)
	}
	return hearth.Wrap(hearth.Internal, err, format, path)
}

type snapshotImportCmd struct {
	dataFlag
	File string `arg:"" help:"Exported file; - is the standard input."`
}

// Run prints the new snapshot's ID.
func (s *snapshotImportCmd) Run(in *invocation) error {
	var r io.Reader = os.Stdin
	if s.File != "-" {
		f, err := os.Open(s.File)
		if err != nil {
			return fileError(err, "%s cannot be read", s.File)
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil && info.IsDir() {
			return hearth.Errorf(hearth.InvalidArgument, "%s is a directory", s.File)
		}
		r = f
	}
	c, err := s.server(in)
	if err != nil {
		return err
	}
	snap, err := c.Import(in.ctx, bufio.NewReaderSize(r, 1<<20))
	if err != nil {
		return remote(err)
	}
	_, err = fmt.Fprintln(in.out, snap.ID)
	return err
}
