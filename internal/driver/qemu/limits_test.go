package qemu_test

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"hearth/internal/driver/microvm"
	"hearth/internal/driver/qemu/qmp"
)

// QEMU holds the disk that the guest writes to, and none else, to the machine's rates.
func limited(t *testing.T, l *lab) {
	spec := l.clone(t, "conf-limited", 249)
	begin(t, l, spec)
	q, err := qmp.Dial(t.Context(), filepath.Join(spec.Dir, "qmp"))
	must(t, err)
	defer q.Close()
	raw, err := q.Call(t.Context(), qmp.Command{Name: "qom-get", Arguments: map[string]string{"path": "/objects/limits", "property": "limits"}})
	must(t, err)
	var got map[string]int64
	must(t, json.Unmarshal(raw, &got))
	rates := microvm.RatesOf(spec.Resources)
	for name, want := range map[string]int64{
		"bps-total": rates.DiskBytes, "iops-total": rates.DiskOps, "iops-total-max": 5 * rates.DiskOps, "bps-read": 0, "iops-write": 0,
	} {
		if got[name] != want {
			t.Errorf("%s is %d, want %d", name, got[name], want)
		}
	}
	var disks []struct {
		Inserted struct {
			Driver string `json:"drv"`
			RO     bool   `json:"ro"`
		} `json:"inserted"`
	}
	must(t, q.Ask(t.Context(), "query-block", &disks))
	if len(disks) < 2 {
		t.Fatalf("the machine has %d disks", len(disks))
	}
	for i, d := range disks {
		if (d.Inserted.Driver == "throttle") == d.Inserted.RO {
			t.Errorf("disk %d is read-only %t, by driver %s", i, d.Inserted.RO, d.Inserted.Driver)
		}
	}
}
