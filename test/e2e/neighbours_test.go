package e2e

import (
	"testing"

	"hearth/client"
)

// TestDownLeavesOtherServersAlone: servers of one host share directories for
// machines, control groups among them. What one of them has running is nothing
// that another's end has to wait for, remove or complain of.
func TestDownLeavesOtherServersAlone(t *testing.T) {
	first := newBaseServer(t)
	sb := first.sandbox(t, client.CreateOptions{Template: "base"})
	second := newBaseServer(t, "HEARTH_NODE_POOL=0")
	if out, err := second.hearth("down", "--data", second.data).CombinedOutput(); err != nil {
		t.Errorf("down of the second server: %v\n%s", err, out)
	}
	second.checkLeaks(t)
	answers(t, sb)
	answers(t, first.sandbox(t, client.CreateOptions{Template: "base"}))
}
