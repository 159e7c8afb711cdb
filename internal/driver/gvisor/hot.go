package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"
)

// A page that is shared costs a fault and a copy when it is written to, on the
// path of whoever waits for the first answer. So the pages that machines of a
// checkpoint are known to write to first are not shared but read, while the
// kernel's state is decoded on another core. Which these are is learned from the
// first machines that were in use and are closed: the sandbox keeps the order
// in which it copied, and is asked by a control call.
//
// On disk: Config.Lessons/ID, by the ID in the checkpoint's manifest, is a
// lesson as JSON. A list that is wrong costs later machines time or memory and
// nothing else; so it may get lost, and a hostile sandbox gains nothing by lying.

const (
	pageSize   = 4096
	hotGap     = pageSize  // no more between two ranges does not part them: every machine holds what is read
	maxHot     = 8 << 20   // bytes of pages in a list: what a machine holds of its own without having written
	maxLesson  = 256 << 10 // bytes of a lesson
	maxSets    = 128       // lessons kept; the oldest go first
	maxLessons = 3         // machines that a checkpoint's list is learned from
	learnTime  = 200 * time.Millisecond
	ownLessons = "hot" // in Config.Root, unless they are kept elsewhere
)

var plainID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Z0-9]{1,64}$`) })

// lesson is what is known of one checkpoint.
type lesson struct {
	Taken int      `json:"taken"` // machines learned from
	Hot   []uint64 `json:"hot"`   // page offsets in the pages file, [start, end) pairs in ascending order
}

// lessons are the ones in a directory.
type lessons struct {
	dir string
	mu  sync.Mutex // held while one is changed
}

// of returns what is known of a checkpoint with size bytes of pages. A lesson
// that cannot be read is none.
func (l *lessons) of(id string, size int64) lesson {
	if !plainID().MatchString(id) {
		return lesson{}
	}
	f, err := os.Open(filepath.Join(l.dir, id))
	if err != nil {
		return lesson{}
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxLesson+1))
	if err != nil {
		return lesson{}
	}
	known, err := parseLesson(raw, size)
	if err != nil {
		return lesson{}
	}
	return known
}

func parseLesson(raw []byte, size int64) (lesson, error) {
	var k lesson
	if len(raw) > maxLesson {
		return k, fmt.Errorf("more than %d bytes", maxLesson)
	}
	if err := json.Unmarshal(raw, &k); err != nil {
		return k, err
	}
	if k.Taken < 0 || len(k.Hot)%2 != 0 {
		return k, errors.New("bad count")
	}
	last := uint64(0)
	for i, off := range k.Hot {
		if off%pageSize != 0 || off > uint64(size) || i > 0 && off <= last {
			return k, fmt.Errorf("offset %d after %d", off, last)
		}
		last = off
	}
	return k, nil
}

// add learns what one more machine touched, in the order of touching.
func (l *lessons) add(id string, size int64, touched []uint64) error {
	if !plainID().MatchString(id) {
		return fmt.Errorf("%.40q is no checkpoint's ID", id)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.of(id, size)
	if known.Taken >= maxLessons {
		return nil
	}
	known.Taken++
	known.Hot = hotRanges(known.Hot, touched, size)
	raw, err := json.Marshal(known)
	if err != nil {
		return err
	}
	if len(raw) > maxLesson {
		return fmt.Errorf("the lesson has %d bytes", len(raw))
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(l.dir, ".new-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(raw)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(l.dir, id))
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return err
	}
	return l.drop()
}

// drop removes the oldest lessons beyond maxSets.
func (l *lessons) drop() error {
	entries, err := os.ReadDir(l.dir)
	if err != nil || len(entries) <= maxSets {
		return err
	}
	var infos []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			infos = append(infos, info)
		}
	}
	slices.SortFunc(infos, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, info := range infos[:max(len(infos)-maxSets, 0)] {
		err = errors.Join(err, os.Remove(filepath.Join(l.dir, info.Name())))
	}
	return err
}

// hotRanges adds to a list what was touched first, up to maxHot bytes. What does
// not lie within size bytes is not from our files: a sandbox may say anything.
func hotRanges(known, touched []uint64, size int64) []uint64 {
	var ranges [][2]uint64
	total := uint64(0)
	take := func(from, to uint64) {
		from, to = from&^(pageSize-1), (to+pageSize-1)&^(pageSize-1)
		if from < to && to <= uint64(size) && total+to-from <= maxHot {
			ranges = append(ranges, [2]uint64{from, to})
			total += to - from
		}
	}
	for _, list := range [][]uint64{known, touched} {
		for i := 0; i+1 < len(list); i += 2 {
			take(list[i], list[i+1])
		}
	}
	slices.SortFunc(ranges, func(a, b [2]uint64) int { return slices.Compare(a[:], b[:]) })
	var list []uint64
	for _, r := range ranges {
		if n := len(list); n > 0 && r[0] <= list[n-1]+hotGap {
			list[n-1] = max(list[n-1], r[1])
			continue
		}
		list = append(list, r[0], r[1])
	}
	return list
}

// learn asks a machine that is about to be closed what it has copied, while its
// checkpoint's list is not complete. A machine that stands frozen was in no use,
// and of a layered checkpoint few machines are started.
func (m *machine) learn(ctx context.Context) {
	if !m.d.cfg.share() || len(m.state.Layers) != 1 {
		return
	}
	l := m.state.Layers[0]
	if m.d.lessons.of(l.ID, l.Bytes).Taken >= maxLessons {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, learnTime)
	defer cancel()
	err := m.control(ctx, "learning", func() error {
		if m.frozen {
			return nil
		}
		touched, err := touchedPages(m.box)
		if err == nil && len(touched) > 0 {
			err = m.d.lessons.add(l.ID, l.Bytes, touched)
		}
		return err
	})
	if err != nil {
		m.d.cfg.Log.Debug("nothing was learned of a machine", "id", m.id, "error", err)
	}
}
