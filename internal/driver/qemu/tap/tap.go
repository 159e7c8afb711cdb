// Package tap opens the network device of a QEMU machine, in whose namespace
// nothing else lives, holds it to its rate and reads its counters.
package tap

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/driver/microvm"
	"hearth/internal/hearth"
)

// inNetNS runs a function in a network namespace, on a thread that ends with it.
func inNetNS(path string, do func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is not fit for anything else
		result <- func() error {
			ns, err := os.Open(path)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("%s cannot be entered: %w", path, err)
			}
			return do()
		}()
	}()
	return <-result
}

// Open opens a tap device that is there, for one QEMU, and holds it to a rate of
// bytes per second each way.
func Open(a driver.Attachment, rate int64) (*os.File, error) {
	var tap *os.File
	err := inNetNS(a.NetNS, func() error {
		if err := isDevice(a.Tap); err != nil { // else the next step would make one
			return fmt.Errorf("there is no device %q: %w", a.Tap, err)
		}
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), a.Tap)
		req, err := unix.NewIfreq(a.Tap)
		if err == nil {
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err == nil {
			err = limit(a, rate)
		}
		if err != nil {
			_ = f.Close()
			return fmt.Errorf("device %q: %w", a.Tap, err)
		}
		tap = f
		return nil
	})
	return tap, err
}

// queueTime is how long a packet may wait for its turn, beyond which it is dropped.
const queueTime = 25 * time.Millisecond

// limit holds what leaves by the tap, which is what the guest receives, and by the
// device that the tap is wired to, which is what it sends. The namespace is the
// machine's alone and goes with it, so nothing is undone.
func limit(a driver.Attachment, rate int64) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	devices := []string{a.Tap}
	if a.Device != a.Tap {
		devices = append(devices, a.Device)
	}
	for _, name := range devices {
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		most := uint32(min(rate*microvm.BurstSeconds, math.MaxUint32)) // at once, after quiet
		err = h.QdiscReplace(&netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       uint64(rate), Buffer: netlink.Xmittime(uint64(rate), most),
			Limit: uint32(min(rate*int64(queueTime)/int64(time.Second), math.MaxUint32)),
		})
		if errors.Is(err, fs.ErrNotExist) {
			return hearth.Wrap(hearth.FailedPrecondition, err, "the rate of %s cannot be limited: load the kernel module sch_tbf", name)
		}
		if err != nil {
			return fmt.Errorf("the rate of %s cannot be limited: %w", name, err)
		}
	}
	return nil
}

func isDevice(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req)
}

// Traffic reads the counters of the tap, as the guest sees them: what the tap
// sends is what the guest receives.
func Traffic(a driver.Attachment) (rx, tx int64) {
	if a.Tap == "" {
		return 0, 0
	}
	var raw []byte
	err := inNetNS(a.NetNS, func() (err error) {
		raw, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return 0, 0
	}
	return microvm.Traffic(string(raw), a.Tap)
}
