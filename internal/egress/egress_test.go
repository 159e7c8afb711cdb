package egress

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/hearth"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		name string
		in   hearth.Network
		want Policy
	}{
		{"nothing asked", hearth.Network{}, Policy{Internet: true}},
		{"internet", hearth.Network{AllowInternet: new(true)}, Policy{Internet: true}},
		{"no internet", hearth.Network{AllowInternet: new(false)}, Policy{}},
		{"lists", hearth.Network{AllowOut: []string{"1.1.1.1", "8.8.8.8/24"}, DenyOut: []string{"0.0.0.0/0", "9.9.9.9"}},
			Policy{Internet: true, AllowOut: ranges("1.1.1.1/32", "8.8.8.0/24"), DenyOut: ranges("0.0.0.0/0", "9.9.9.9/32")}},
		{"mapped", hearth.Network{DenyOut: []string{"::ffff:1.2.3.4", "::ffff:1.2.3.0/120"}},
			Policy{Internet: true, DenyOut: ranges("1.2.3.4/32", "1.2.3.0/24")}},
		{"denied IPv6 is never reached anyway", hearth.Network{DenyOut: []string{"fd00::/8", "2001:db8::1"}}, Policy{Internet: true}},
		{"mask", hearth.Network{MaskRequestHost: "localhost:${PORT}"}, Policy{Internet: true}},
	} {
		got, err := Parse(test.in)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if d := cmp.Diff(test.want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
			t.Errorf("%s: %s", test.name, d)
		}
	}
}

func TestParseErrors(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for _, test := range []struct {
		in   hearth.Network
		want string
	}{
		{hearth.Network{DenyOut: []string{"example.com"}}, "invalid denied CIDR example.com"},
		{hearth.Network{DenyOut: []string{"1.2.3.4/33"}}, "invalid denied CIDR 1.2.3.4/33"},
		{hearth.Network{DenyOut: []string{"0.0.0.0"}}, "invalid denied CIDR 0.0.0.0"},
		{hearth.Network{DenyOut: []string{"0.0.0.0/8"}}, "invalid denied CIDR 0.0.0.0/8"},
		{hearth.Network{DenyOut: []string{"::/0"}}, "invalid denied CIDR ::/0"},
		{hearth.Network{DenyOut: []string{""}}, "invalid denied CIDR "},
		{hearth.Network{DenyOut: []string{"1.2.3.4\n"}}, "invalid denied CIDR 1.2.3.4?"},
		{hearth.Network{DenyOut: []string{long}}, "invalid denied CIDR " + long[:maxShown] + "..."},
		{hearth.Network{DenyOut: make([]string, MaxEntries+1)}, "denyOut has 257 entries; the limit is 256"},
		{hearth.Network{AllowOut: make([]string, MaxEntries+1)}, "allowOut has 257 entries; the limit is 256"},
		{hearth.Network{AllowOut: []string{"1.2.3"}}, "invalid allowed destination 1.2.3: must be an address, a CIDR or a domain name"},
		{hearth.Network{AllowOut: []string{"fe80::1%eth0"}}, "invalid allowed destination fe80::1%eth0: must be an address, a CIDR or a domain name"},
		{hearth.Network{AllowOut: []string{"fd00::1"}}, "allowOut: fd00::1 is IPv6; sandboxes have IPv4 egress only"},
		{hearth.Network{AllowOut: []string{"example.com"}}, "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all other traffic."},
		{hearth.Network{AllowOut: []string{"*.example.com"}, DenyOut: []string{"0.0.0.0/0"}}, "allowOut: *.example.com is a domain; this server supports addresses and CIDRs only"},
		{hearth.Network{MaskRequestHost: "a b"}, "invalid maskRequestHost a b: must be a host name with an optional port; ${PORT} stands for the requested port"},
	} {
		p, err := Parse(test.in)
		if err == nil || err.Error() != test.want || hearth.KindOf(err) != hearth.InvalidArgument {
			t.Errorf("%+v: %+v, %v; want %q", test.in, p, err, test.want)
		}
	}
}

func TestCheckMask(t *testing.T) {
	for mask, ok := range map[string]bool{
		"": true, "localhost": true, "localhost:3000": true, "localhost:${PORT}": true, "${PORT}.example.com": true,
		"127.0.0.1:${PORT}": true, "a:0": false, "a:65536": false, "a:99999999999999999999": false, "a:": false,
		":80": false, "a/b": false, "a@b": false, "a\r\nX-Y: z": false, "a:1:2": false, "ä": false, "-a": false,
		"a..b": false, "${port}": false, strings.Repeat("a", 64): false,
	} {
		if got := CheckMask(mask) == nil; got != ok {
			t.Errorf("%q: %v", mask, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"1.2.3.4", "0.0.0.0/0", "::ffff:0:0/95", "*.a.b", "fe80::1%x", "1.2.3.4/08", "*", "010.1.1.1"} {
		f.Add(s, s, s)
	}
	f.Fuzz(func(t *testing.T, allow, deny, mask string) {
		p, err := Parse(hearth.Network{AllowOut: []string{allow}, DenyOut: []string{deny, allTraffic}, MaskRequestHost: mask})
		if err != nil {
			if hearth.KindOf(err) != hearth.InvalidArgument || len(err.Error()) > 300 {
				t.Errorf("%q, %q, %q: %v", allow, deny, mask, err)
			}
			return
		}
		for _, q := range append(p.AllowOut, p.DenyOut...) {
			if !q.IsValid() || !q.Addr().Is4() || q.Masked() != q {
				t.Errorf("%q, %q: %v", allow, deny, q)
			}
		}
		if strings.ContainsAny(mask, "\r\n /@") {
			t.Errorf("mask %q was accepted", mask)
		}
	})
}

func ranges(all ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
