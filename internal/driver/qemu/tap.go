package qemu

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
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

// openTap opens a tap device that is there, for one QEMU.
func openTap(a driver.Attachment) (*os.File, error) {
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
		if err != nil {
			_ = f.Close()
			return fmt.Errorf("device %q: %w", a.Tap, err)
		}
		tap = f
		return nil
	})
	return tap, err
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

// traffic reads the counters of the tap, as the guest sees them: what the tap
// sends is what the guest receives.
func traffic(a driver.Attachment) (rx, tx int64) {
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
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		name, counters, _ := strings.Cut(lines.Text(), ":")
		if f := strings.Fields(counters); strings.TrimSpace(name) == a.Tap && len(f) >= 9 {
			tx, _ = strconv.ParseInt(f[0], 10, 64)
			rx, _ = strconv.ParseInt(f[8], 10, 64)
		}
	}
	return rx, tx
}
