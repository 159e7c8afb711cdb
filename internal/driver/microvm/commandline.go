package microvm

import (
	"fmt"
	"strings"

	"hearth/internal/driver/microvm/vminit"
)

// Transport is how the guest reaches the host's end of the channel.
type Transport string

// The transports.
const (
	Serial Transport = vminit.Serial // a virtio-serial port named PortName
	Vsock  Transport = vminit.Vsock  // the guest listens on VsockPort
)

// PortName names the virtio-serial port of the channel; VsockPort is its vsock port.
const (
	PortName  = vminit.PortName
	VsockPort = vminit.VsockPort
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
	Init      []string  // first program in the new root and its arguments; empty: DefaultInit
	Env       []string  // its environment, NAME=value; no secrets: every process of the guest can read it
	// Console is the kernel's console device ("ttyS0"); empty: none.
	Console string
	// Reboot is how the machine ends: "t" (triple fault) or "k" (keyboard controller).
	Reboot string
	// TSC is the time stamp counter's kHz, for emulated CPUs whose calibration
	// would hang; 0: the kernel finds out. See HostTSC. The kernel is told to trust
	// the counter, too: with several CPUs of a maker it does not know it would count
	// ticks instead, of which an emulated machine loses many.
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
		add("tsc_early_khz=%d tsc=reliable", c.TSC)
	}
	list = append(list, c.More...)
	add("%s", vminit.Argument("layers", c.Layers))
	if c.Guest != "" {
		add("%s", vminit.Argument("guest", []string{c.Guest}))
	}
	add("%s", vminit.Argument("disk", []string{c.Disk}))
	add("%s", vminit.Argument("channel", []string{string(c.Transport)}))
	init := c.Init
	if len(init) == 0 {
		init = []string{DefaultInit}
	}
	add("%s", vminit.Argument("init", init))
	if len(c.Env) > 0 {
		add("%s", vminit.Argument("env", c.Env))
	}
	return strings.Join(list, " ")
}
