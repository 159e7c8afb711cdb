package tap

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"hearth/internal/driver"
)

// A tap that is wired to a veth, as a slot has it, is given its rate both ways. What
// the kernel does with it is not looked at.
func TestRatesHoldBothWays(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	name := fmt.Sprintf("hqr%d", os.Getpid())
	ip := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	ip("netns", "add", name)
	t.Cleanup(func() { ip("netns", "del", name) })
	ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
	ip("-n", name, "tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")
	a := driver.Attachment{NetNS: "/run/netns/" + name, Device: "eth0", Tap: "tap0"}
	for _, rate := range []struct {
		bytes int64
		said  string
	}{{125_000_000, "1Gbit"}, {5_000_000_000, "40Gbit"}} {
		f, err := Open(a, rate.bytes)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		for device, limited := range map[string]bool{"tap0": true, "eth0": true, "eth1": false} {
			out, err := exec.Command("tc", "-n", name, "qdisc", "show", "dev", device).CombinedOutput()
			if err != nil {
				t.Fatalf("tc: %v\n%s", err, out)
			}
			if got := strings.Contains(string(out), "qdisc tbf") && strings.Contains(string(out), " rate "+rate.said+" "); got != limited {
				t.Errorf("%s is limited to %s %t: %s", device, rate.said, got, out)
			}
		}
	}
	if rx, tx := Traffic(a); rx != 0 || tx != 0 {
		t.Errorf("a tap that nobody used has received %d bytes and sent %d", rx, tx)
	}
	a.Tap = "tap9"
	if f, err := Open(a, 1000); err == nil {
		f.Close()
		t.Error("a tap was made")
	}
}
