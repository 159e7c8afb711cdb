//go:build hearthcow

package gvisor

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gvisor.dev/gvisor/pkg/state"
	"gvisor.dev/gvisor/pkg/state/statefile"
)

// saved stands for the objects of a kernel: numbers of all sizes, pointers that
// meet again, into arrays too, and more of them than are allocated at once.
type saved struct {
	Yes, No      bool
	I            int
	I64          int64
	I32          int32
	I16          int16
	U8           uint8
	U16          uint16
	U32          uint32
	U64          uint64
	F            float64
	Named        named
	Text         string
	Bytes        []byte
	Next, Within *saved
	Row          [3]saved2
	Second       *saved2
	List         []*saved2
	Long         []uint64
	By           map[string]*saved2
	Any, Nothing any
	Loaded       int
}

type named uint32

type saved2 struct{ A, B uint64 }

func (*saved) StateTypeName() string { return "hearth.saved" }
func (*saved) StateFields() []string {
	return strings.Fields("Yes No I I64 I32 I16 U8 U16 U32 U64 F Named Text Bytes Next Within Row Second List Long By Any Nothing")
}

func (s *saved) fields() []any {
	return []any{&s.Yes, &s.No, &s.I, &s.I64, &s.I32, &s.I16, &s.U8, &s.U16, &s.U32, &s.U64, &s.F, &s.Named, &s.Text, &s.Bytes,
		&s.Next, &s.Within, &s.Row, &s.Second, &s.List, &s.Long, &s.By, &s.Any, &s.Nothing}
}

func (s *saved) StateSave(to state.Sink) {
	for i, f := range s.fields() {
		to.Save(i, f)
	}
}

func (s *saved) StateLoad(_ context.Context, from state.Source) {
	for i, f := range s.fields() {
		from.Load(i, f)
	}
	from.AfterLoad(func() { s.Loaded++ })
}

func (*saved2) StateTypeName() string     { return "hearth.saved2" }
func (*saved2) StateFields() []string     { return []string{"A", "B"} }
func (s *saved2) StateSave(to state.Sink) { to.Save(0, &s.A); to.Save(1, &s.B) }
func (s *saved2) StateLoad(_ context.Context, from state.Source) {
	from.Load(0, &s.A)
	from.Load(1, &s.B)
}

// registered makes gVisor know the types, which it does for the rest of the process.
var registered = sync.OnceFunc(func() {
	state.Register((*saved)(nil))
	state.Register((*saved2)(nil))
})

func sample() *saved {
	rnd := rand.New(rand.NewPCG(1, 2))
	root := &saved{
		Yes: true, I: math.MinInt, I64: math.MaxInt64, I32: math.MinInt32, I16: math.MinInt16, U8: 255, U16: math.MaxUint16, U32: math.MaxUint32,
		U64: math.MaxUint64, F: math.Pi, Named: 1 << 31, Text: strings.Repeat("text", 200_000), Bytes: []byte{0, 127, 128, 255},
		Row: [3]saved2{{1, 2}, {3, 4}, {5, 6}}, By: map[string]*saved2{}, Any: &saved2{7, 8},
	}
	root.Second = &root.Row[1]
	for i := range 1000 {
		root.List = append(root.List, &saved2{rnd.Uint64() >> (i % 64), uint64(i)})
	}
	for i := range 300_000 { // more than the reader's buffer holds, several times
		root.Long = append(root.Long, rnd.Uint64()>>(i%64))
	}
	root.By["first"], root.By[""] = root.List[0], root.Second
	for range 300 {
		root = &saved{Next: root, Within: root.Next, I: int(rnd.Int64()), U16: uint16(rnd.Uint32())}
	}
	return root
}

// encoded returns the states of values, one after the other, in a file's format.
func encoded(t *testing.T, values ...*saved) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := statefile.NewWriter(&buf, nil, statefile.CompressionLevelNone.ToMetadata())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		if _, err := state.Save(t.Context(), w, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// decode reads one state after the other, as a kernel's two are.
func decode(ctx context.Context, raw []byte, n int) (list []*saved, err error) {
	r, _, err := statefile.NewReader(io.NopCloser(bytes.NewReader(raw)), nil)
	if err != nil {
		return nil, err
	}
	for range n {
		v := new(saved)
		stats, err := state.Load(ctx, r, v)
		if err != nil {
			return nil, err
		}
		_ = stats.String() // a kernel's log has it, whether they are kept or not
		list = append(list, v)
	}
	return list, nil
}

// TestStateIsDecodedAsItWas: what the patched decoder makes of a state is what was
// saved, with statistics and without; of a state that ends too soon, an error.
func TestStateIsDecodedAsItWas(t *testing.T) {
	registered()
	defer func(was bool) { state.Quick = was }(state.Quick)
	small, large := &saved{Text: "small"}, sample()
	raw := encoded(t, small, large)
	for _, quick := range []bool{false, true} {
		state.Quick = quick
		t.Run(fmt.Sprintf("quick %t", quick), func(t *testing.T) {
			got, err := decode(t.Context(), raw, 2)
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range []*saved{small, large} {
				for w, g := want, got[i]; w != nil; w, g = w.Next, g.Next {
					if g.Loaded != 1 {
						t.Fatalf("an object's AfterLoad ran %d times", g.Loaded)
					}
					g.Loaded = 0
					if (g.Within != nil) != (w.Within != nil) || g.Within != nil && g.Within != g.Next.Next {
						t.Fatal("two pointers to one object became others")
					}
					w.Within, g.Within = nil, nil
					if w.Next == nil && i == 1 && (g.Second != &g.Row[1] || g.By[""] != g.Second || g.By["first"] != g.List[0]) {
						t.Fatal("pointers into other objects became others")
					}
				}
				if diff := cmp.Diff(flat(want), flat(got[i])); diff != "" {
					t.Errorf("value %d (-saved +loaded):\n%s", i, diff)
				}
			}
			large.restoreWithin()
		})
	}
	for _, end := range []int{len(raw) / 2, len(raw) - 1} {
		if _, err := decode(t.Context(), raw[:end], 2); err == nil {
			t.Errorf("%d of %d bytes passed for a state", end, len(raw))
		}
	}
}

// flat lists a chain, which is too deep to be compared as it is.
func flat(s *saved) (list []saved) {
	for ; s != nil; s = s.Next {
		one := *s
		one.Next = nil
		list = append(list, one)
	}
	return list
}

// restoreWithin undoes what a comparison took away.
func (s *saved) restoreWithin() {
	for ; s != nil && s.Next != nil; s = s.Next {
		s.Within = s.Next.Next
	}
}
