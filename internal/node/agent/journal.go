package agent

import (
	"bytes"
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

// phase says who owned a machine when its record was written, and with that
// what recovery does with it.
type phase string

const (
	starting phase = "starting" // not usable yet: taken down
	pooled   phase = "pooled"   // restored, frozen, never unsealed: back into the pool
	running  phase = "running"  // a sandbox: attached
	pausing  phase = "pausing"  // perhaps sealed or frozen: thawed and unsealed
	ending   phase = "ending"   // stopped or paused for good: taken down
)

const recordVersion = 1

// record is one line of a machine's journal file, machines/ID.json, mode 0600.
// The last whole line counts. The file is made before the machine exists and
// removed after everything the machine held is freed. Lines are appended, for a
// rename costs a millisecond where a start takes five, and not synced: a record
// has to outlive this process, not a power cut, which no machine survives. A
// file without a whole line is swept by its name.
type record struct {
	Version   int               `json:"version"`
	Phase     phase             `json:"phase"`
	Handle    driver.Handle     `json:"handle"`
	Slot      int               `json:"slot"` // noSlot: none
	Resources hearth.Resources  `json:"resources"`
	Build     hearth.BuildID    `json:"build"`
	Restored  hearth.SnapshotID `json:"restored,omitempty"` // what it was restored from
	Into      hearth.SnapshotID `json:"into,omitempty"`     // while pausing
	Sandbox   *sandboxRecord    `json:"sandbox,omitempty"`  // nil in a pool
}

// sandboxRecord is what a sandbox needs to be taken up again, and to be
// unsealed again after a pause that failed.
type sandboxRecord struct {
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

// journal keeps one file per machine.
type journal struct{ dir string }

func newJournal(dir string) *journal { return &journal{dir: filepath.Join(dir, "machines")} }

func (j *journal) path(id string) string { return filepath.Join(j.dir, id+".json") }

// maxJournal is the size in bytes beyond which a file is begun anew.
const maxJournal = 64 << 10

// write makes r the machine's record.
func (j *journal) write(r record) error {
	r.Version = recordVersion
	raw, err := json.Marshal(r)
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "the machine's record cannot be encoded")
	}
	line := slices.Concat([]byte("\n"), raw, []byte("\n")) // the first ends a line that was cut short
	size, err := appendTo(j.path(r.Handle.ID), line)
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
func (j *journal) compact(id string, line []byte) error {
	tmp := j.path(id) + ".new"
	err := os.WriteFile(tmp, line, 0o600)
	if err == nil {
		err = os.Rename(tmp, j.path(id))
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

// remove forgets a machine. Idempotent.
func (j *journal) remove(id string) error {
	if err := os.Remove(j.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// load reads every record. A file that cannot be understood yields a record in
// phase starting with nothing but its ID, which recovery sweeps.
func (j *journal) load() ([]record, error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, err
	}
	var list []record
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || driver.CheckID(id) != nil {
			if err := os.RemoveAll(filepath.Join(j.dir, e.Name())); err != nil {
				return nil, err
			}
			continue
		}
		raw, err := os.ReadFile(j.path(id))
		if err != nil {
			return nil, err
		}
		list = append(list, lastRecord(id, raw))
	}
	return list, nil
}

func lastRecord(id string, raw []byte) record {
	last := record{Phase: starting, Slot: noSlot, Handle: driver.Handle{ID: id}}
	for line := range bytes.Lines(raw) {
		var r record
		if json.Unmarshal(line, &r) == nil && r.Version == recordVersion && r.Handle.ID == id {
			last = r
		}
	}
	return last
}
