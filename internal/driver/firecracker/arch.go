package firecracker

import (
	"debug/elf"
	"runtime"
)

// arch is what differs between the processors that Firecracker runs on.
type arch struct {
	machine elf.Machine // of the kernel's file
	console string      // the kernel's name of the serial port
	reboot  string      // how a guest ends its machine
	args    []string    // more for the kernel
}

// thisArch is this host's. On arm64 Firecracker takes the kernel's Image instead
// of an ELF file, which checkKernel and package microvm must learn first.
func thisArch() arch {
	if runtime.GOARCH == "arm64" {
		return arch{machine: elf.EM_AARCH64, console: "ttyS0", reboot: "k"}
	}
	return arch{
		machine: elf.EM_X86_64, console: "ttyS0", reboot: "k",
		// The keyboard controller is there for the reboot only, so no time is lost in looking for keyboards.
		args: []string{"pci=off", "i8042.noaux", "i8042.nomux", "i8042.dumbkbd"},
	}
}
