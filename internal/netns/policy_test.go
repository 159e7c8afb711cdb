package netns

import (
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"pgregory.net/rapid"
)

func drawPrefix(t *rapid.T) netip.Prefix {
	a := [4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address"))
	a[0] &= 3 // few, so that prefixes nest
	return netip.PrefixFrom(netip.AddrFrom4(a), rapid.IntRange(0, 32).Draw(t, "bits"))
}

// TestNormalPolicy: the form the filter holds means the same, and survives the
// way into the sets and back.
func TestNormalPolicy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{
			Internet: rapid.Bool().Draw(t, "internet"),
			AllowOut: rapid.SliceOfN(rapid.Custom(drawPrefix), 0, 8).Draw(t, "allow"),
			DenyOut:  rapid.SliceOfN(rapid.Custom(drawPrefix), 0, 8).Draw(t, "deny"),
		}
		normal, err := p.normal()
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			a := drawPrefix(t).Addr()
			if p.Allows(a) != normal.Allows(a) {
				t.Fatalf("%s: %v is not %v", a, p, normal)
			}
		}
		guest := []byte{10, 213, 0, 2}
		var back Policy
		for _, e := range pairs(guest, normal.AllowOut) {
			back.AllowOut = append(back.AllowOut, prefixOf(e))
		}
		for _, e := range pairs(guest, normal.DenyOut) {
			back.DenyOut = append(back.DenyOut, prefixOf(e))
		}
		back.Internet = normal.Internet
		if !back.equal(normal) {
			t.Fatalf("%v came back as %v", normal, back)
		}
	})
}

func TestIntervals(t *testing.T) {
	for _, test := range []struct {
		in   []string
		want []nftables.SetElement
	}{
		{nil, nil},
		{[]string{"10.0.0.0/8"}, []nftables.SetElement{start("10.0.0.0"), end("11.0.0.0")}},
		{[]string{"10.0.0.0/9", "10.128.0.0/9", "11.0.0.0/8"}, []nftables.SetElement{start("10.0.0.0"), end("12.0.0.0")}},
		{[]string{"224.0.0.0/4", "240.0.0.0/4"}, []nftables.SetElement{start("224.0.0.0")}},
		{[]string{"0.0.0.0/0"}, []nftables.SetElement{start("0.0.0.0")}},
	} {
		got := intervals(prefixes(test.in...))
		if len(got) != len(test.want) {
			t.Fatalf("%v: %v", test.in, got)
		}
		for i, e := range got {
			if string(e.Key) != string(test.want[i].Key) || e.IntervalEnd != test.want[i].IntervalEnd {
				t.Errorf("%v: element %d is %v", test.in, i, e)
			}
		}
	}
}

func start(a string) nftables.SetElement {
	return nftables.SetElement{Key: netip.MustParseAddr(a).AsSlice()}
}

func end(a string) nftables.SetElement {
	return nftables.SetElement{Key: netip.MustParseAddr(a).AsSlice(), IntervalEnd: true}
}

func TestSlotsAndAddresses(t *testing.T) {
	cfg, err := Config{Name: "t"}.withDefaults()
	must(t, err)
	for _, index := range []int{0, 1, 63, 64, 4095, cfg.capacity() - 1} {
		s := cfg.slot(index)
		if got, ok := cfg.indexOf(s.Guest.Addr()); !ok || got != index {
			t.Errorf("slot %d: its address %s is of slot %d", index, s.Guest, got)
		}
		if _, ok := cfg.indexOf(s.Gateway); ok || !s.Guest.Contains(s.Gateway) || !cfg.Prefix.Contains(s.Gateway) {
			t.Errorf("slot %d: gateway %s", index, s.Gateway)
		}
		if len(s.HostDevice) > 15 {
			t.Errorf("device name %s is too long", s.HostDevice)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for _, cfg := range []Config{
		{}, {Name: "Upper"}, {Name: "sevenxx"}, {Name: "a-b"},
		{Name: "a", Prefix: netip.MustParsePrefix("fd00::/16")},
		{Name: "a", Prefix: netip.MustParsePrefix("10.0.0.0/31")},
		{Name: "a", MTU: 100},
		{Name: "a", Exempt: prefixes("fd00::/8")},
		{Name: "a", Resolvers: []netip.Addr{{}}},
		{Name: "a", Limits: Limits{Connections: -1}},
	} {
		if _, err := New(cfg, nil); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}
