package pager

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestHandshakesThatCannotBeTrue(t *testing.T) {
	const size = 1 << 20
	region := func(address, length, offset, page uint64) string {
		return fmt.Sprintf(`{"base_host_virt_addr":%d,"size":%d,"offset":%d,"page_size":%d}`, address, length, offset, page)
	}
	for name, c := range map[string]struct {
		raw string
		ok  bool
	}{
		"one":                    {"[" + region(1<<20, size, 0, 4096) + "]", true},
		"old name":               {`[{"base_host_virt_addr":4096,"size":1048576,"offset":0,"page_size_kib":4096}]`, true},
		"two":                    {"[" + region(1<<30, size/2, size/2, 4096) + "," + region(1<<20, size/2, 0, 4096) + "]", true},
		"no list":                {`{}`, false},
		"empty":                  {`[]`, false},
		"negative":               {`[{"base_host_virt_addr":-1,"size":1048576,"offset":0,"page_size":4096}]`, false},
		"text":                   {`[{"base_host_virt_addr":"x"}]`, false},
		"null":                   {`null`, false},
		"odd pages":              {"[" + region(1<<20, size, 0, 4095) + "]", false},
		"no pages":               {"[" + region(1<<20, size, 0, 0) + "]", false},
		"half a page":            {"[" + region(1<<20+1, size, 0, 4096) + "]", false},
		"too small":              {"[" + region(1<<20, size/2, 0, 4096) + "]", false},
		"too large":              {"[" + region(1<<20, size*2, 0, 4096) + "]", false},
		"hole":                   {"[" + region(1<<20, size/2, 0, 4096) + "," + region(1<<30, size/4, size*3/4, 4096) + "]", false},
		"twice":                  {"[" + region(1<<20, size/2, 0, 4096) + "," + region(1<<30, size/2, 0, 4096) + "]", false},
		"overlapping":            {"[" + region(1<<20, size/2, 0, 4096) + "," + region(1<<20+4096, size/2, size/2, 4096) + "]", false},
		"at zero":                {"[" + region(0, size, 0, 4096) + "]", false},
		"beyond every space":     {"[" + region(1<<63, size, 0, 4096) + "]", false},
		"wraps":                  {"[" + region(1<<64-4096, size, 0, 4096) + "]", false},
		"offset beyond":          {"[" + region(1<<20, size, 1<<63, 4096) + "]", false},
		"page sizes differ":      {"[" + region(1<<21, size/2, 0, 4096) + "," + region(1<<30, size/2, size/2, 2<<20) + "]", false},
		"huge":                   {"[" + region(1<<21, size, 0, 2<<20) + "]", false}, // not of whole pages
		"trailing":               {"[" + region(1<<20, size, 0, 4096) + "] x", false},
		"more than is thinkable": {"[" + string(bytes.Repeat([]byte(region(1<<20, 4096, 0, 4096)+","), 100)) + region(1<<20, 4096, 0, 4096) + "]", false},
	} {
		if regions, err := ParseHandshake([]byte(c.raw), size); (err == nil) != c.ok {
			t.Errorf("%s: %v, %v", name, regions, err)
		}
	}
}

func FuzzParseHandshake(f *testing.F) {
	f.Add([]byte(`[{"base_host_virt_addr":4096,"size":1048576,"offset":0,"page_size":4096}]`))
	f.Add([]byte(`[{"base_host_virt_addr":4096,"size":524288,"offset":0,"page_size_kib":4096},{"base_host_virt_addr":9437184,"size":524288,"offset":524288,"page_size_kib":4096}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		const size = 1 << 20
		regions, err := ParseHandshake(raw, size)
		if err != nil {
			return
		}
		s := NewServer(Config{}, -1, regions)
		for page := range s.size / s.page { // every page has an address, and it is that page's
			if back, ok := s.pageAt(s.addressOf(page)); !ok || back != page {
				t.Fatalf("page %d is at %#x, where page %d is", page, s.addressOf(page), back)
			}
		}
		if s.size != size {
			t.Fatalf("%d bytes", s.size)
		}
	})
}

func FuzzParseWorkingSet(f *testing.F) {
	f.Add(WorkingSet{PageSize: 4096, Size: 1 << 20, Pages: []uint32{7, 3, 255}}.Encode())
	f.Add([]byte(workingSetMagic))
	f.Fuzz(func(t *testing.T, raw []byte) {
		w, err := ParseWorkingSet(raw)
		if err != nil {
			return
		}
		if !bytes.Equal(w.Encode(), raw) {
			t.Fatal("it does not come back the same")
		}
		n := uint64(0)
		for _, r := range w.runs(3) {
			n += r[1]
		}
		if n != uint64(len(w.Pages)) {
			t.Fatalf("runs of %d pages, there are %d", n, len(w.Pages))
		}
	})
}

func TestDamagedWorkingSet(t *testing.T) {
	good := WorkingSet{PageSize: 4096, Size: 1 << 20, Pages: []uint32{7, 3, 255}}
	raw := good.Encode()
	if back, err := ParseWorkingSet(raw); err != nil || !reflect.DeepEqual(back, good) {
		t.Fatalf("%+v, %v", back, err)
	}
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 0x10
		if _, err := ParseWorkingSet(bad); err == nil {
			t.Errorf("byte %d flipped and not seen", i)
		}
		if _, err := ParseWorkingSet(raw[:i]); err == nil {
			t.Errorf("cut to %d bytes and not seen", i)
		}
	}
	for name, w := range map[string]WorkingSet{
		"twice":      {PageSize: 4096, Size: 1 << 20, Pages: []uint32{7, 7}},
		"beyond":     {PageSize: 4096, Size: 1 << 20, Pages: []uint32{256}},
		"no memory":  {PageSize: 4096},
		"odd memory": {PageSize: 4096, Size: 4097},
		"odd pages":  {PageSize: 8192, Size: 1 << 20},
	} {
		if _, err := ParseWorkingSet(w.Encode()); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
}

func FuzzMessages(f *testing.F) {
	fault := make([]byte, messageSize)
	fault[0] = eventPagefault
	binary.NativeEndian.PutUint64(fault[16:], 1<<20)
	f.Add(append(fault, fault...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if got := parseMessages(raw); len(got) != len(raw)/messageSize {
			t.Fatalf("%d messages of %d bytes", len(got), len(raw))
		}
	})
}

// lay is checked against a model: an owner per unit.
func FuzzLay(f *testing.F) {
	f.Add([]byte{3, 4, 9, 2, 0, 16}, []byte{0, 1, 5, 5})
	f.Fuzz(func(t *testing.T, one, two []byte) {
		const size = 64
		var owner [size]Source
		files := []Source{File{new(os.File)}, File{new(os.File)}, File{new(os.File)}}
		extents := []extent{{0, size, files[0]}}
		for i := range owner {
			owner[i] = files[0]
		}
		for n, raw := range [][]byte{one, two} {
			var above []extent
			for at := int64(0); len(raw) >= 2; raw = raw[2:] { // gap, length
				start := at + int64(raw[0]%16)
				end := min(start+1+int64(raw[1]%16), size)
				if start >= size {
					break
				}
				above = append(above, extent{start, end, files[n+1]})
				for i := start; i < end; i++ {
					owner[i] = files[n+1]
				}
				at = end
			}
			extents = lay(extents, above)
		}
		at := int64(0)
		l := Layers{size: size, extents: extents}
		for i, e := range extents {
			if e.start != at || e.end <= e.start {
				t.Fatalf("extents %v have a gap at %d", extents, at)
			}
			for x := e.start; x < e.end; x++ {
				if owner[x] != e.from || l.at(x) != i {
					t.Fatalf("unit %d has the wrong owner", x)
				}
			}
			at = e.end
		}
		if at != size {
			t.Fatalf("extents end at %d", at)
		}
	})
}

func TestLayersOfTwoSizes(t *testing.T) {
	f := memoryFile(t, 1, func(int) bool { return true })
	g, err := os.Create(filepath.Join(t.TempDir(), "short"))
	must(t, err)
	defer g.Close()
	must(t, g.Truncate(smallPage))
	for name, files := range map[string][]Layer{"none": nil, "two sizes": {{Source: File{f}}, {Source: File{g}}}} {
		if _, err := NewLayers(files); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
	must(t, g.Truncate(100))
	if _, err := NewLayers([]Layer{{Source: File{g}}}); err == nil {
		t.Error("half a page: not refused")
	}
}

// FuzzPages: what is understood is what was meant, and goes into no more than its memory.
func FuzzPages(f *testing.F) {
	p := AllPages(70 * smallPage)
	f.Add(p.Encode(), int64(70*smallPage))
	p.bits[3] = 0x5a
	f.Add(p.Encode(), int64(70*smallPage))
	f.Add([]byte(pagesMagic), int64(0))
	f.Fuzz(func(t *testing.T, raw []byte, size int64) {
		p, err := ParsePages(raw, size)
		if err != nil {
			return
		}
		if !bytes.Equal(p.Encode(), raw) {
			t.Fatal("it is not what was read")
		}
		at, sum := int64(-1), int64(0)
		for _, run := range p.runs() {
			if run[0] <= at || run[1] <= run[0] || run[1] > size {
				t.Fatalf("run %v after %d, of %d", run, at, size)
			}
			at = run[1]
			sum += (run[1] - run[0]) / smallPage
		}
		for n := range p.count {
			if p.has(n) {
				sum--
			}
		}
		if sum != 0 {
			t.Fatalf("runs have %d pages too many", sum)
		}
	})
}
