package gvisor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHotRanges(t *testing.T) {
	const p = pageSize
	for name, c := range map[string]struct{ known, touched, want []uint64 }{
		"none":           {nil, nil, nil},
		"order":          {nil, []uint64{40 * p, 41 * p, 0, p}, []uint64{0, p, 40 * p, 41 * p}},
		"small gap":      {nil, []uint64{0, p, 2 * p, 3 * p}, []uint64{0, 3 * p}},
		"large gap":      {nil, []uint64{0, p, 3 * p, 4 * p}, []uint64{0, p, 3 * p, 4 * p}},
		"overlap":        {nil, []uint64{0, 9 * p, 2 * p, 3 * p}, []uint64{0, 9 * p}},
		"one more":       {[]uint64{40 * p, 41 * p}, []uint64{0, p}, []uint64{0, p, 40 * p, 41 * p}},
		"unaligned":      {nil, []uint64{100, 200}, []uint64{0, p}},
		"backwards":      {nil, []uint64{3 * p, p}, nil},
		"beyond":         {nil, []uint64{9999 * p, 10001 * p}, nil},
		"no end":         {nil, []uint64{0, p, 50 * p}, []uint64{0, p}},
		"end of numbers": {nil, []uint64{1<<64 - 5, 1<<64 - 1}, nil},
		"too much":       {[]uint64{0, p}, []uint64{p, maxHot + p, 60 * p, 61 * p}, []uint64{0, p, 60 * p, 61 * p}},
	} {
		got := hotRanges(c.known, c.touched, 10000*p)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		raw, err := json.Marshal(lesson{Taken: 1, Hot: got})
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseLesson(raw, 10000*p); err != nil || !cmp.Equal(again.Hot, got) {
			t.Errorf("%s: read back as %v, %v", name, again, err)
		}
	}
}

func TestBadLessons(t *testing.T) {
	for _, hot := range []string{"1", `"a"`, "[1]", "[4096]", "[0,4096,4096]", "[0,0]", "[8192,4096]", "[-1,0]", "[0,18446744073709551616]", "[0,409600]"} {
		if k, err := parseLesson([]byte(`{"taken":1,"hot":`+hot+`}`), 40960); err == nil {
			t.Errorf("%s: %v", hot, k)
		}
	}
	if k, err := parseLesson(make([]byte, maxLesson+1), 1); err == nil {
		t.Errorf("%v", k)
	}
}

func FuzzLesson(f *testing.F) {
	f.Add([]byte(`{"taken":1,"hot":[0,4096,8192,12288]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := parseLesson(raw, 1<<30)
		if err != nil {
			return
		}
		for i, off := range k.Hot {
			if off%pageSize != 0 || i > 0 && off <= k.Hot[i-1] || len(k.Hot)%2 != 0 {
				t.Fatalf("%v", k.Hot)
			}
		}
	})
}

// Lessons are few, bounded, and survive damage.
func TestLessons(t *testing.T) {
	const p = pageSize
	l := lessons{dir: filepath.Join(t.TempDir(), "hot")}
	if k := l.of("A", 100*p); k.Taken != 0 || k.Hot != nil {
		t.Errorf("before any: %+v", k)
	}
	for i := range uint64(maxLessons + 2) {
		if err := l.add("A", 100*p, []uint64{10 * i * p, (10*i + 1) * p}); err != nil {
			t.Fatal(err)
		}
	}
	if k := l.of("A", 100*p); k.Taken != maxLessons || len(k.Hot) != 2*maxLessons {
		t.Errorf("after all: %+v", k)
	}
	if k := l.of("A", p); k.Taken != 0 {
		t.Errorf("of a checkpoint that is smaller: %+v", k)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "A"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if k := l.of("A", 100*p); k.Taken != 0 {
		t.Errorf("damaged: %+v", k)
	}
	for _, id := range []string{"", ".", "..", "../A", "A/B", "a\x00"} {
		if err := l.add(id, 100*p, []uint64{0, p}); err == nil {
			t.Errorf("%q names a lesson", id)
		}
	}
	for i := range maxSets + 5 {
		if err := l.add(fmt.Sprint("MANY", i), 100*p, []uint64{0, p}); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(l.dir); err != nil || len(entries) != maxSets {
		t.Errorf("%d lessons are kept, %v", len(entries), err)
	}
}
