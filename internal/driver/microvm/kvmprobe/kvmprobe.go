// Package kvmprobe finds out whether this host's KVM really runs virtual
// machines. That /dev/kvm can be opened says little: it may lack what a monitor
// needs, and where the host is itself a guest it may make virtual CPUs that never
// get anywhere. So Check runs a few instructions in one.
package kvmprobe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
)

// Device is where Linux has KVM.
const Device = "/dev/kvm"

// Patience is how long the virtual CPU may take for what takes a working one a
// millisecond, and one whose processor is itself emulated a second.
const Patience = 10 * time.Second

// Check returns nil if virtual machines run here, else a FailedPrecondition that
// says what is in the way. It takes some milliseconds, or Patience when the
// virtual CPU does not stop by itself; when ctx ends it stops earlier. Nothing
// is left behind.
func Check(ctx context.Context, device string) error {
	kvm, err := open(device)
	if err != nil {
		return err
	}
	defer unix.Close(kvm)
	version, err := ioctl(kvm, getAPIVersion, 0)
	if err != nil {
		return hearth.Wrap(hearth.FailedPrecondition, err, "%s is not KVM", device)
	}
	if version != apiVersion {
		return hearth.Errorf(hearth.FailedPrecondition, "%s has version %d of the interface, not %d", device, version, apiVersion)
	}
	if lacks := missing(kvm); len(lacks) > 0 {
		return hearth.Errorf(hearth.FailedPrecondition, "this host's KVM lacks %s; monitors of virtual machines need them", strings.Join(lacks, ", "))
	}
	return run(ctx, kvm, program)
}

func open(device string) (int, error) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, hearth.Wrap(hearth.FailedPrecondition, err,
			"there is no %s: the processor has no virtualization, the firmware or the machine this one runs in turns it off, or the kernel module kvm_intel or kvm_amd is not loaded", device)
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() == 0:
		return -1, hearth.Wrap(hearth.FailedPrecondition, err, "root may not open %s: let the container or service that this runs in have the device (character, 10:232)", device)
	case errors.Is(err, fs.ErrPermission):
		return -1, hearth.Wrap(hearth.FailedPrecondition, err, "no permission to open %s: uid %d is not root nor in its group", device, os.Geteuid())
	}
	return -1, hearth.Wrap(hearth.FailedPrecondition, err, "%s cannot be opened", device)
}

// ioctl requests that are the same on every architecture; from linux/kvm.h.
const (
	getAPIVersion   = 0xae00
	createVM        = 0xae01
	checkExtension  = 0xae03
	getVCPUMmapSize = 0xae04
	createVCPU      = 0xae41
	setUserMemory   = 0x4020ae46
	runVCPU         = 0xae80

	apiVersion = 12
)

// needed are the capabilities that QEMU's microvm or Firecracker ask for.
func needed() []capability {
	return []capability{
		{0, "IRQCHIP"}, {3, "USER_MEMORY"}, {4, "SET_TSS_ADDR"}, {7, "EXT_CPUID"}, {14, "MP_STATE"},
		{21, "DESTROY_MEMORY_REGION_WORKS"}, {30, "JOIN_MEMORY_REGIONS_WORKS"}, {32, "IRQFD"}, {33, "PIT2"},
		{35, "PIT_STATE2"}, {36, "IOEVENTFD"}, {37, "SET_IDENTITY_MAP_ADDR"}, {39, "ADJUST_CLOCK"},
		{40, "INTERNAL_ERROR_DATA"}, {41, "VCPU_EVENTS"}, {50, "DEBUGREGS"}, {55, "XSAVE"}, {56, "XCRS"},
		{77, "SIGNAL_MSI"}, {136, "IMMEDIATE_EXIT"},
	}
}

type capability struct {
	number uintptr
	name   string
}

func missing(kvm int) []string {
	var names []string
	for _, c := range needed() {
		if n, err := ioctl(kvm, checkExtension, c.number); err != nil || n == 0 {
			names = append(names, "KVM_CAP_"+c.name)
		}
	}
	return names
}

// ioctl passes a number; ioctlAt the address of a structure.
func ioctl(fd int, request, argument uintptr) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, argument)
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EINTR || request == runVCPU {
			return -1, errno
		}
	}
}

func ioctlAt[T any](fd int, request uintptr, argument *T) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(argument)))
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}

// broken is the error of a virtual CPU that does not do what it should.
func broken(format string, args ...any) error {
	return hearth.Errorf(hearth.FailedPrecondition, "%s is there but its virtual CPUs do not work: %s", Device, fmt.Sprintf(format, args...))
}
