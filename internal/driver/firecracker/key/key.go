// Package key names what a checkpoint depends on, part by part, so that a refusal
// can say which part differs: the monitor's version, the processor, the kernels of
// host and guest, what machines are made of.
package key

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// Name is the driver whose checkpoints have such keys.
const Name = "firecracker"

// layout counts the changes to what a machine is made of, as a snapshot sees it:
// names in the jail, the order of drives, the channel, what devices can do.
const layout = 3

// Key is a list of parts.
type Key []part

type part struct{ name, value string }

// Host is what of a host goes into a key, beside what it says about itself.
type Host struct {
	Firecracker string // its version
	GuestKernel string // digest of kernel and initramfs
	Template    []byte // of the processor; nil: none
}

// String is the form that is kept and compared: "name=value" with commas.
func (k Key) String() string {
	list := make([]string, len(k))
	for i, p := range k {
		list[i] = p.name + "=" + p.value
	}
	return strings.Join(list, ",")
}

// New describes a host. The host's kernel counts by its first two numbers: a
// snapshot holds the state of its KVM, and Firecracker promises nothing across them.
func New(h Host) (Key, error) {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	model, features, err := processor(cpuinfo)
	if err != nil {
		return nil, err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, err
	}
	k := Key{
		{"firecracker", h.Firecracker}, {"host-kernel", majorMinor(unix.ByteSliceToString(name.Release[:]))},
		{"guest-kernel", h.GuestKernel[:min(len(h.GuestKernel), 16)]}, {"layout", fmt.Sprint(layout)},
	}
	if h.Template != nil { // what a template is for: processors of one vendor look the same
		vendor, _, _ := strings.Cut(model, "-")
		return append(k, part{"cpu", vendor}, part{"cpu-template", short(h.Template)}), nil
	}
	return append(k, part{"cpu", model}, part{"features", features}), nil
}

func short(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:6])
}

func majorMinor(release string) string {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return release
	}
	return parts[0] + "." + parts[1]
}

// processor reads the first processor's vendor, family and model, and a digest
// of its features.
func processor(cpuinfo []byte) (model, features string, err error) {
	fields := map[string]string{}
	first, _, _ := bytes.Cut(cpuinfo, []byte("\n\n"))
	for line := range strings.Lines(string(first)) {
		name, value, _ := strings.Cut(line, ":")
		fields[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	flags, vendor := fields["flags"], fields["vendor_id"]
	if flags == "" { // arm64
		flags, vendor = fields["Features"], "implementer"+fields["CPU implementer"]
		fields["cpu family"], fields["model"] = fields["CPU architecture"], fields["CPU part"]
	}
	list := strings.Fields(flags)
	if len(list) == 0 {
		return "", "", errors.New("/proc/cpuinfo lists no features")
	}
	slices.Sort(list)
	return fmt.Sprintf("%s-%s-%s", vendor, fields["cpu family"], fields["model"]), short([]byte(strings.Join(list, " "))), nil
}

// partNames are the parts' names for people.
var partNames = []part{
	{"firecracker", "version of Firecracker"}, {"cpu", "processor"}, {"features", "set of processor features"},
	{"host-kernel", "host kernel"}, {"guest-kernel", "guest kernel"}, {"layout", "machine layout"},
	{"cpu-template", "CPU template"},
}

// Check refuses a checkpoint of another driver or host, naming what differs.
func (k Key) Check(from *driver.Checkpoint) error {
	if from.Driver != Name {
		return hearth.Errorf(hearth.FailedPrecondition, "checkpoint was written by driver %q, this is %q", from.Driver, Name)
	}
	if from.Key == k.String() {
		return nil
	}
	theirs := map[string]string{}
	for _, p := range strings.Split(from.Key, ",") {
		name, value, _ := strings.Cut(p, "=")
		theirs[name] = value
	}
	ours := map[string]string{}
	for _, p := range k {
		ours[p.name] = p.value
	}
	for _, p := range partNames {
		if a, b := theirs[p.name], ours[p.name]; a != b {
			return hearth.Errorf(hearth.FailedPrecondition, "checkpoint needs another %s: %.80q, this host has %.80q", p.value, a, b)
		}
	}
	return hearth.Errorf(hearth.FailedPrecondition, "checkpoint needs a host %.300q, this one is %.300q", from.Key, k.String())
}
