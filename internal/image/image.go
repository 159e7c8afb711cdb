// Package image makes the root file systems of templates: it unpacks a Source
// into a directory, adds what every sandbox must hold, and packs the result
// into a read-only EROFS image that all sandboxes of a build share.
//
// Sources are Debian packages (through mmdebstrap and the host's own apt
// configuration), tarballs and OCI image layouts. Archives are hostile: they
// are unpacked through an os.Root, bounded by Limits, and nothing in them is
// ever run on the host. Only Debian's own packages run their installation
// scripts, in namespaces of their own.
//
// Images are not compressed: gVisor's EROFS does not read compressed files, and
// uncompressed ones are mapped straight from the page cache, one copy for all
// sandboxes of a template.
package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"errors"

	"hearth/internal/hearth"
)

// formatVersion is part of every key: it grows when what this package makes of
// a source changes, so that images of an older release are made anew.
const formatVersion = "1"

// Source is where a root file system comes from.
type Source interface {
	// Key names what Unpack would write: equal keys, equal content. It is 64
	// lower-case hex digits and may read files to find it, but changes nothing.
	Key(ctx context.Context) (string, error)

	// Unpack writes the root file system into dir, which exists and is empty.
	// After an error dir's content is the caller's to remove.
	Unpack(ctx context.Context, dir string, report Progress) error
}

// Configured is a Source that knows how its programs want to be run.
type Configured interface {
	Source
	Config(ctx context.Context) (Config, error)
}

// Config is what an OCI image says of its programs.
type Config struct {
	Env     map[string]string
	User    string
	Workdir string
}

// Event is one thing to tell about a long step.
type Event struct {
	Step    string        // what is being made: "packages", "python", "image"
	Message string        // one line, without a line break
	Done    int64         // how much, in Unit; 0: not known
	Total   int64         // of how much; 0: not known
	Unit    string        // "bytes", "files", "packages"
	Elapsed time.Duration // since the step began
}

// Progress is told what a long step does. It is called from several goroutines
// and must not block for long. A nil Progress is fine.
type Progress func(Event)

func (p Progress) say(start time.Time, step, format string, args ...any) {
	p.send(start, Event{Step: step, Message: fmt.Sprintf(format, args...)})
}

func (p Progress) send(start time.Time, e Event) {
	if p == nil {
		return
	}
	e.Elapsed = time.Since(start)
	p(e)
}

// Limits bounds what one root file system may hold.
type Limits struct {
	Bytes   int64 // of all files together
	Entries int   // files, directories and links
}

// DefaultLimits are generous for a template and small for a disk.
func DefaultLimits() Limits { return Limits{Bytes: 16 << 30, Entries: 2_000_000} }

// digest is the key of a list of parts, in which no two lists collide.
func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s\n", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// diskError gives an error of a full disk its kind and a sentence; others pass.
func diskError(err error, where string) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || strings.Contains(err.Error(), "No space left on device") {
		return hearth.Wrap(hearth.ResourceExhausted, err, "the disk of %s is full; free some space and try again", where)
	}
	return err
}

// removeAll removes a tree that a process of ours may have left unwritable.
func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return hearth.Wrap(hearth.Internal, err, "cannot remove %s", dir)
	}
	return nil
}
