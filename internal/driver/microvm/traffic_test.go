package microvm

import "testing"

func TestTrafficIsTheGuests(t *testing.T) {
	const dev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:      11       1    0    0    0     0          0         0       22       1    0    0    0     0       0          0
  tap0:     600       6    0    0    0     0          0         0      700       7    0    0    0     0       0          0
`
	if rx, tx := Traffic(dev, "tap0"); rx != 700 || tx != 600 {
		t.Errorf("received %d, sent %d", rx, tx)
	}
	for _, text := range []string{"", dev[:len(dev)-120], "tap0: 1 2"} {
		if rx, tx := Traffic(text, "tap0"); rx != 0 || tx != 0 {
			t.Errorf("%q: received %d, sent %d", text, rx, tx)
		}
	}
}
