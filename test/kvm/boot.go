package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// machine is the emulated host.
type machine struct {
	kernel, initrd, disk string
	cpus, memory         int // memory in MiB
}

// processor is a real model with nested virtualization added, and without what
// the emulator lacks of it. The emulator's own model ("max") has nonsense in the
// leaves that describe caches, which monitors copy to their guests.
const processor = "EPYC,+svm,+npt,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,-xsavec"

func (m machine) args() []string {
	return []string{
		"-machine", "q35", "-accel", "tcg,tb-size=1024,thread=multi", "-cpu", processor,
		"-smp", strconv.Itoa(m.cpus), "-m", strconv.Itoa(m.memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-drive", "id=disk,if=none,format=raw,readonly=on,file=" + m.disk, "-device", "virtio-blk-pci,drive=disk",
		"-kernel", m.kernel, "-initrd", m.initrd,
		"-append", "console=ttyS0 loglevel=4 panic=-1 oops=panic mitigations=off",
	}
}

// boot runs the machine until it goes off, and hands every line of its console
// to hear. When ctx ends, or this process, the machine does.
func boot(ctx context.Context, m machine, hear func(line string)) error {
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", m.args()...)
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	console, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("QEMU cannot be started: %w", err)
	}
	lines := bufio.NewReaderSize(console, 64<<10)
	for {
		line, _, err := lines.ReadLine() // one that is too long comes in pieces
		if err != nil {
			break
		}
		hear(string(line))
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("QEMU: %w", err)
	}
	return nil
}
