package chunkblob

import (
	"bytes"
	"reflect"
	"testing"
)

// FuzzIndex: whatever the bytes, no panic, no more memory than they justify, and
// what is understood is what was meant.
func FuzzIndex(f *testing.F) {
	f.Add((&index{}).encode())
	f.Add((&index{size: 4097, packs: []string{"00ff"}, extents: []extent{{length: 1, pack: 0, at: 56, stored: 9}, {length: 4096, pack: noPack}}}).encode())
	ix := &index{size: 3 + 4096, packs: []string{string(bytes.Repeat([]byte("ab"), 32))}}
	ix.extents = []extent{{length: 3, at: headerBytes, stored: 12, codec: zstd1, sum: [32]byte{1}}, {length: 4096, pack: noPack}}
	f.Add(ix.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		ix, err := decode(b)
		if err != nil {
			return
		}
		if again, err := decode(ix.encode()); err != nil || !reflect.DeepEqual(ix, again) || !bytes.Equal(ix.encode(), b) {
			t.Fatalf("%+v was read again as %+v, %v", ix, again, err)
		}
	})
}

// FuzzCut: chunks and holes are all of the content, within their bounds.
func FuzzCut(f *testing.F) {
	f.Add([]byte("x"), uint16(3))
	f.Add(make([]byte, 10_000), uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, times uint16) {
		b = bytes.Repeat(b, int(times%64))
		for len(b) > 0 {
			n := zeros(b)
			if n == 0 {
				n = chosen.next(b)
				if n > chosen.most || n%pageBytes != 0 && n != len(b) {
					t.Fatalf("a chunk of %d bytes of %d", n, len(b))
				}
			}
			if n <= 0 || n > len(b) {
				t.Fatalf("%d of %d bytes", n, len(b))
			}
			b = b[n:]
		}
	})
}
