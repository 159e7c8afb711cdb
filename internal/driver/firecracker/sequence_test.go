package firecracker_test

import (
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hearth/internal/driver"
)

// names lists calls without their bodies.
func names(list []call) []string {
	var out []string
	for _, c := range list {
		const told = "guest: configure" // which a slow host repeats
		again := c.Call == told && len(out) > 0 && out[len(out)-1] == told
		if (c.Call != "GET /version" || len(out) > 0) && !again { // a few of these, until it answers
			out = append(out, c.Call)
		}
	}
	return out
}

func wantCalls(t *testing.T, what string, got []call, want ...string) {
	t.Helper()
	if have := names(got); !slices.Equal(have, want) {
		t.Errorf("%s:\ngot  %s\nwant %s", what, strings.Join(have, "\n     "), strings.Join(want, "\n     "))
	}
}

// body finds the body of the last call of a name, without blanks.
func body(t *testing.T, list []call, name string) string {
	t.Helper()
	for _, c := range slices.Backward(list) {
		if c.Call == name {
			return string(c.Body)
		}
	}
	t.Fatalf("%s was not called", name)
	return ""
}

// netSlot makes a namespace with taps, which the stand-in opens as the real
// monitor does, and leaves alone.
func netSlot(t *testing.T) driver.Attachment {
	t.Helper()
	name := mine + "0"
	run := func(args ...string) {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("ip %v: %v\n%s", args, err, out)
		}
	}
	run("netns", "add", name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	run("-n", name, "tuntap", "add", "tap0", "mode", "tap")
	run("-n", name, "tuntap", "add", "tap1", "mode", "tap")
	return driver.Attachment{
		NetNS: "/run/netns/" + name, Guest: netip.MustParsePrefix("10.9.8.2/30"), Gateway: netip.MustParseAddr("10.9.8.1"),
		Device: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}, Tap: "tap0",
	}
}

// The exact calls of a boot, a pause, a checkpoint, a restore, and a second layer.
func TestCallSequences(t *testing.T) {
	l := newLab(t)
	spec := l.spec(t)
	spec.Net = netSlot(t)
	spec.Resources.VCPUs = 2
	m := l.start(t, spec)
	got := calls(t, spec)
	wantCalls(t, "boot", got,
		"PUT /machine-config", "PUT /boot-source", "PUT /drives/layer0", "PUT /drives/guest", "PUT /drives/disk",
		"PUT /network-interfaces/eth0", "PUT /vsock", "PUT /balloon", "PUT /entropy", "PUT /actions", "guest: configure")
	for name, want := range map[string]string{
		"PUT /machine-config": `{"vcpu_count":2,"mem_size_mib":128,"smt":false,"track_dirty_pages":false}`,
		"PUT /drives/layer0":  `{"drive_id":"layer0","path_on_host":"/layer0","is_root_device":false,"is_read_only":true,"cache_type":"Unsafe","io_engine":"Sync"}`,
		"PUT /drives/disk": `{"drive_id":"disk","path_on_host":"/disk","is_root_device":false,"is_read_only":false,"cache_type":"Unsafe","io_engine":"Sync",` +
			`"rate_limiter":{"bandwidth":{"size":268435456,"one_time_burst":1073741824,"refill_time":1000},"ops":{"size":10000,"one_time_burst":40000,"refill_time":1000}}}`,
		"PUT /network-interfaces/eth0": `{"iface_id":"eth0","host_dev_name":"tap0","guest_mac":"02:00:00:00:00:09",` +
			`"rx_rate_limiter":{"bandwidth":{"size":250000000,"one_time_burst":1000000000,"refill_time":1000}},"tx_rate_limiter":{"bandwidth":{"size":250000000,"one_time_burst":1000000000,"refill_time":1000}}}`,
		"PUT /vsock":   `{"guest_cid":3,"uds_path":"/vsock"}`,
		"PUT /balloon": `{"amount_mib":0,"deflate_on_oom":true,"stats_polling_interval_s":30,"free_page_reporting":true}`,
		"PUT /actions": `{"action_type":"InstanceStart"}`,
	} {
		if have := body(t, got, name); have != want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, have, want)
		}
	}
	var source struct {
		Kernel string `json:"kernel_image_path"`
		Initrd string `json:"initrd_path"`
		Args   string `json:"boot_args"`
	}
	if err := json.Unmarshal([]byte(body(t, got, "PUT /boot-source")), &source); err != nil || source.Kernel != "/kernel" || source.Initrd != "/initrd" {
		t.Errorf("boot source %+v, %v", source, err)
	}
	for _, want := range []string{"console=ttyS0", "reboot=k", "hearth.layers=vda", "hearth.guest=vdb", "hearth.disk=vdc", "hearth.channel=vsock"} {
		if !slices.Contains(strings.Fields(source.Args), want) {
			t.Errorf("kernel arguments %q lack %q", source.Args, want)
		}
	}
	wantSettings(t, got, `{"hostname":"`+spec.ID+`","device":"eth0","mac":"02:00:00:00:00:09","address":"10.9.8.2/30","gateway":"10.9.8.1"}`)

	ask(t, m, "POST", "/memory", "key", "k", "value", "v")
	must(t, m.Freeze(t.Context()))
	must(t, m.Freeze(t.Context()))
	first := l.snapshot(t, m)
	must(t, m.Thaw(t.Context()))
	must(t, m.Thaw(t.Context()))
	wantCalls(t, "freeze, checkpoint, thaw", calls(t, spec)[len(got):],
		"PATCH /vm", "PUT /snapshot/create", "PATCH /vm", "guest: configure")
	if have, want := body(t, calls(t, spec), "PUT /snapshot/create"), `{"snapshot_type":"Full","snapshot_path":"/new-state","mem_file_path":"/new-memory"}`; have != want {
		t.Errorf("snapshot %s, want %s", have, want)
	}
	must(t, m.Close(t.Context()))

	clone := l.spec(t)
	clone.From, clone.Net, clone.Resources = first, spec.Net, spec.Resources
	clone.Net.Tap, clone.Net.Guest = "tap1", netip.MustParsePrefix("10.9.8.6/30")
	m = l.start(t, clone)
	got = calls(t, clone)
	wantCalls(t, "restore", got, "PUT /snapshot/load", "guest: configure")
	if have, want := body(t, got, "PUT /snapshot/load"), `{"snapshot_path":"/state","mem_backend":{"backend_type":"File","backend_path":"/memory"},"track_dirty_pages":true,"resume_vm":true,`+
		`"network_overrides":[{"iface_id":"eth0","host_dev_name":"tap1"}],"vsock_override":{"uds_path":"/vsock"}}`; have != want {
		t.Errorf("load\ngot  %s\nwant %s", have, want)
	}
	wantSettings(t, got, `{"hostname":"`+clone.ID+`","device":"eth0","mac":"02:00:00:00:00:09","address":"10.9.8.6/30","gateway":"10.9.8.1","restored":true}`)
	if shared, own := inode(t, filepath.Join(first.Dir, "memory")), inode(t, jailed(clone, "memory")); shared != own {
		t.Error("the clone's memory is not the checkpoint's file, so clones would not share it")
	}

	must(t, m.Freeze(t.Context()))
	second := l.snapshot(t, m)
	if have, want := body(t, calls(t, clone), "PUT /snapshot/create"), `{"snapshot_type":"Diff","snapshot_path":"/new-state","mem_file_path":"/new-memory"}`; have != want {
		t.Errorf("snapshot %s, want %s", have, want)
	}
	third := l.spec(t)
	third.From, third.Net, third.Resources = second, clone.Net, clone.Resources
	must(t, m.Close(t.Context()))
	m = l.start(t, third)
	_ = pagerOf(t, m)
	if have := body(t, calls(t, third), "PUT /snapshot/load"); !strings.Contains(have, `"mem_backend":{"backend_type":"Uffd","backend_path":"/pager"}`) {
		t.Errorf("load of a layered checkpoint: %s", have)
	}
	if got := ask(t, m, "GET", "/memory", "key", "k"); got != "v" {
		t.Errorf("memory: %q", got)
	}
}

func wantSettings(t *testing.T, list []call, want string) {
	t.Helper()
	var have, wanted map[string]any
	must(t, json.Unmarshal([]byte(body(t, list, "guest: configure")), &have))
	must(t, json.Unmarshal([]byte(want), &wanted))
	for _, omitted := range []string{"now", "seed"} { // others in every run
		delete(have, omitted)
	}
	a, _ := json.Marshal(have)
	b, _ := json.Marshal(wanted)
	if string(a) != string(b) {
		t.Errorf("settings\ngot  %s\nwant %s", a, b)
	}
}

func (l *lab) snapshot(t *testing.T, m driver.Machine) *driver.Checkpoint {
	t.Helper()
	dir, err := os.MkdirTemp(l.dir, "checkpoint-")
	must(t, err)
	c, err := m.Checkpoint(t.Context(), dir)
	must(t, err)
	return c
}

func jailed(s driver.Spec, name string) string {
	return filepath.Join(s.Dir, "firecracker", s.ID, "root", name)
}

func inode(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("stat", "-c", "%d:%i", path).Output()
	must(t, err)
	return string(out)
}
