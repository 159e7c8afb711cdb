package kvmprobe

import (
	"encoding/binary"
	"testing"
)

func TestExitReasons(t *testing.T) {
	for _, test := range []struct {
		reason uint32
		union  []byte
		want   string
	}{
		{2, []byte{1, 1, 0xa0, 5, 1, 0, 0, 0, 100}, "wrote 7 to port 0x5a0"},
		{2, []byte{0, 1, 0xa0, 5, 1, 0, 0, 0, 100}, "used a port in a way that the program does not"},
		{2, []byte{1, 1, 0xa0, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff}, "used a port in a way that the program does not"},
		{5, nil, "halted"},
		{6, []byte{0, 0, 0, 0x7f}, "touched address 0x7f000000, where no memory is"},
		{8, nil, "shut down after three faults in a row (KVM_EXIT_SHUTDOWN)"},
		{9, []byte{0x21, 0, 0, 0x80}, "was not entered: hardware reason 0x80000021 (KVM_EXIT_FAIL_ENTRY)"},
		{17, []byte{1}, "stopped: error 1 inside KVM (KVM_EXIT_INTERNAL_ERROR)"},
		{99, nil, "stopped for KVM's reason 99"},
	} {
		shared := make([]byte, 128)
		binary.LittleEndian.PutUint32(shared[8:], test.reason)
		copy(shared[32:], test.union)
		shared[100] = 7
		if got := exit(shared); got != test.want {
			t.Errorf("reason %d: %q, want %q", test.reason, got, test.want)
		}
	}
}
