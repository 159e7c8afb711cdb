// Package journal keeps what a node knows of its machines, so that the next
// process on the host finds them again or takes them down.
package journal

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hearth/internal/driver"
	"hearth/internal/hearth"
	"hearth/internal/node/agent/shelf"
)

// Phase says who owned a machine when its record was written, and with that
// what recovery does with it.
type Phase string

// The phases.
const (
	Starting Phase = "starting" // not usable yet: taken down
	Blank    Phase = "blank"    // waits for what to restore: taken down
	Pooled   Phase = "pooled"   // restored, frozen, never unsealed: back into the pool
	Running  Phase = "running"  // a sandbox: attached
	Pausing  Phase = "pausing"  // perhaps sealed or frozen: thawed and unsealed
	Ending   Phase = "ending"   // stopped or paused for good: taken down
)

// NoSlot marks a machine that holds no network slot.
const NoSlot = -1

const recordVersion = 1

// Record is one line of a machine's journal file, machines/ID.json, mode 0600.
// The last whole line counts. The file is made before the machine exists and
// removed after everything the machine held is freed. Lines are appended, for a
// rename costs a millisecond where a start takes five, and not synced: a record
// has to outlive this process, not a power cut, which no machine survives. A
// file without a whole line is swept by its name.
type Record struct {
	Version   int               `json:"version"`
	Phase     Phase             `json:"phase"`
	Handle    driver.Handle     `json:"handle"`
	Slot      int               `json:"slot"` // NoSlot: none
	Resources hearth.Resources  `json:"resources"`
	Build     hearth.BuildID    `json:"build"`
	Restored  hearth.SnapshotID `json:"restored,omitempty"` // what it was restored from
	Into      hearth.SnapshotID `json:"into,omitempty"`     // while pausing
	Sandbox   *Sandbox          `json:"sandbox,omitempty"`  // nil in a pool
}

// Sandbox is what a sandbox needs to be taken up again, and to be
// unsealed again after a pause that failed.
type Sandbox struct {
	ID         hearth.SandboxID  `json:"id"`
	Generation int64             `json:"generation"`
	StartedAt  time.Time         `json:"started_at"`
	Template   hearth.TemplateID `json:"template"`
	Network    hearth.Network    `json:"network"`
	Token      string            `json:"token,omitempty"`
	Env        map[string]string `json:"env,omitempty"`
	User       string            `json:"user,omitempty"`
	Workdir    string            `json:"workdir,omitempty"`
}

// Journal keeps one file per machine.
type Journal struct{ dir string }

// New returns the journal below a node's directory, whose folder machines must
// be there before anything is written.
func New(dir string) *Journal { return &Journal{dir: filepath.Join(dir, "machines")} }

// NewID returns a machine's: "m" and 16 characters of [a-z2-7], 80 random bits.
func NewID() string { return "m" + strings.ToLower(rand.Text()[:16]) }

// Path is the file of a machine.
func (j *Journal) Path(id string) string { return filepath.Join(j.dir, id+".json") }

// maxJournal is the size in bytes beyond which a file is begun anew.
const maxJournal = 64 << 10

// Write makes r the machine's record.
func (j *Journal) Write(r Record) error {
	r.Version = recordVersion
	raw, err := json.Marshal(r)
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "the machine's record cannot be encoded")
	}
	line := slices.Concat([]byte("\n"), raw, []byte("\n")) // the first ends a line that was cut short
	size, err := appendTo(j.Path(r.Handle.ID), line)
	if err == nil && size > maxJournal {
		err = j.compact(r.Handle.ID, line)
	}
	return shelf.DiskError(err, "the machine's record cannot be written")
}

// appendTo adds to a file and returns its size.
func appendTo(path string, line []byte) (int64, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	_, err = f.Write(line)
	size, serr := f.Seek(0, io.SeekEnd)
	return size, errors.Join(err, serr, f.Close())
}

// compact leaves only the last line.
func (j *Journal) compact(id string, line []byte) error {
	tmp := j.Path(id) + ".new"
	err := os.WriteFile(tmp, line, 0o600)
	if err == nil {
		err = os.Rename(tmp, j.Path(id))
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

// Remove forgets a machine. Idempotent.
func (j *Journal) Remove(id string) error {
	if err := os.Remove(j.Path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Load reads every record. A file that cannot be understood yields one in
// phase Starting with nothing but its ID, which recovery sweeps.
func (j *Journal) Load() ([]Record, error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, err
	}
	var list []Record
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || driver.CheckID(id) != nil {
			if err := os.RemoveAll(filepath.Join(j.dir, e.Name())); err != nil {
				return nil, err
			}
			continue
		}
		raw, err := os.ReadFile(j.Path(id))
		if err != nil {
			return nil, err
		}
		list = append(list, lastRecord(id, raw))
	}
	return list, nil
}

func lastRecord(id string, raw []byte) Record {
	last := Record{Phase: Starting, Slot: NoSlot, Handle: driver.Handle{ID: id}}
	for line := range bytes.Lines(raw) {
		var r Record
		if json.Unmarshal(line, &r) == nil && r.Version == recordVersion && r.Handle.ID == id {
			last = r
		}
	}
	return last
}

// Newest marks for taking down every machine of which its sandbox has a newer one
// that was ready: a crash can leave both when a sandbox is taken back to a snapshot.
func Newest(list []Record) []Record {
	ready := func(r Record) bool {
		return r.Sandbox != nil && (r.Phase == Running || r.Phase == Pausing)
	}
	best := map[hearth.SandboxID]int64{}
	for _, r := range list {
		if ready(r) {
			best[r.Sandbox.ID] = max(best[r.Sandbox.ID], r.Sandbox.Generation)
		}
	}
	for i, r := range list {
		if ready(r) && r.Sandbox.Generation < best[r.Sandbox.ID] {
			list[i].Phase, list[i].Sandbox = Ending, nil // its end is no news
		}
	}
	return list
}

// Strays lists what is in a directory and bears the name of no machine with a record.
func (j *Journal) Strays(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		if _, err := os.Stat(j.Path(e.Name())); err != nil {
			list = append(list, e.Name())
		}
	}
	return list, nil
}
