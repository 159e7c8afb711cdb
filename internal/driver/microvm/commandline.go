package microvm

import (
	"fmt"
	"strings"
)

// Transport is how the guest reaches the host's end of the channel.
type Transport string

// The transports.
const (
	Serial Transport = "serial" // a virtio-serial port named PortName
	Vsock  Transport = "vsock"  // the guest listens on VsockPort
)

// PortName names the virtio-serial port of the channel; VsockPort is its vsock port.
const (
	PortName  = "hearth"
	VsockPort = 1024
)

// DefaultInit is the first program of a machine with the guest daemon's image.
const DefaultInit = "/.guest/hearth-guest"

// CommandLine is what the guest's kernel and hearth-init are told. Device names
// are plain ("vda").
type CommandLine struct {
	Layers    []string  // EROFS layers, lowest first
	Guest     string    // the daemon's image, mounted at /.guest; empty: none
	Disk      string    // the writable ext4 disk
	Transport Transport // of the channel
	Init      string    // first program in the new root; empty: DefaultInit
	// Console is the kernel's console device ("ttyS0"); empty: none.
	Console string
	// Reboot is how the machine ends: "t" (triple fault) or "k" (keyboard controller).
	Reboot string
	// TSC is the time stamp counter's kHz, for emulated CPUs whose calibration
	// would hang; 0: the kernel finds out. See HostTSC.
	TSC int
	// More is added as it is, before Hearth's own part.
	More []string
}

// String returns the kernel command line.
func (c CommandLine) String() string {
	list := []string{"panic=-1", "quiet", "init_on_alloc=0", "random.trust_cpu=on"}
	add := func(format string, a ...any) { list = append(list, fmt.Sprintf(format, a...)) }
	if c.Reboot != "" {
		add("reboot=%s", c.Reboot)
	}
	if c.Console != "" {
		add("console=%s", c.Console)
	}
	if c.TSC > 0 {
		add("tsc_early_khz=%d", c.TSC)
	}
	list = append(list, c.More...)
	add("hearth.layers=%s", strings.Join(c.Layers, ","))
	if c.Guest != "" {
		add("hearth.guest=%s", c.Guest)
	}
	add("hearth.disk=%s", c.Disk)
	add("hearth.channel=%s", c.Transport)
	init := c.Init
	if init == "" {
		init = DefaultInit
	}
	add("hearth.init=%s", init)
	return strings.Join(list, " ")
}
