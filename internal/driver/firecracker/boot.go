package firecracker

import (
	"context"
	"strconv"

	"hearth/internal/driver"
	"hearth/internal/driver/firecracker/vmm"
	"hearth/internal/driver/microvm"
)

// guestCID is the guest's own address on its vsock. Each machine has its own
// socket on the host, so it may be the same in all.
const guestCID = 3

// diskName is the guest's name of the n-th drive.
func diskName(n int) string { return "vd" + string(rune('a'+n)) }

// drives lists a machine's drives in the order of the guest: the layers, the
// guest image, the writable disk.
func drives(spec driver.Spec, guest string) []vmm.Drive {
	var list []vmm.Drive
	add := func(name string) {
		list = append(list, vmm.Drive{DriveID: name, PathOnHost: "/" + name, IsReadOnly: true, CacheType: "Unsafe", IOEngine: "Sync"})
	}
	for i := range spec.Layers {
		add(layerFile + strconv.Itoa(i))
	}
	if guest != "" {
		add(guestFile)
	}
	return append(list, vmm.Drive{
		DriveID: diskFile, PathOnHost: "/" + diskFile, CacheType: "Unsafe", IOEngine: "Sync",
		RateLimiter: diskLimiter(spec.Resources),
	})
}

// commandLine is what kernel and first process are told.
func (d *Driver) commandLine(spec driver.Spec, guest string) string {
	a := thisArch()
	line := microvm.CommandLine{
		Transport: microvm.Vsock, Init: d.cfg.Init, Env: d.cfg.Env, Console: a.console, Reboot: a.reboot, More: a.args,
	}
	for i := range spec.Layers {
		line.Layers = append(line.Layers, diskName(i))
	}
	next := len(spec.Layers)
	if guest != "" {
		line.Guest = diskName(next)
		next++
	}
	line.Disk = diskName(next)
	return line.String()
}

// boot describes the machine to its monitor and starts it. Dirty pages are not
// tracked: the first checkpoint is of the whole memory anyway.
func (m *machine) boot(ctx context.Context, spec driver.Spec, o origin) error {
	r := spec.Resources
	calls := []func() error{
		func() error {
			return m.api.SetMachine(ctx, vmm.MachineConfig{VCPUCount: r.VCPUs, MemSizeMiB: r.MemoryMiB})
		},
	}
	if o.host.template != nil {
		calls = append(calls, func() error { return m.api.SetCPU(ctx, o.host.template) })
	}
	calls = append(calls, func() error {
		return m.api.SetBoot(ctx, vmm.BootSource{
			KernelImagePath: "/" + kernelFile, InitrdPath: "/" + initrdFile, BootArgs: m.d.commandLine(spec, o.guest),
		})
	})
	for _, drive := range drives(spec, o.guest) {
		calls = append(calls, func() error { return m.api.SetDrive(ctx, drive) })
	}
	if n := spec.Net; n.Tap != "" {
		calls = append(calls, func() error {
			return m.api.SetNetwork(ctx, vmm.NetworkInterface{
				IfaceID: guestDevice, HostDevName: n.Tap, GuestMAC: n.MAC.String(),
				RxRateLimiter: netLimiter(r), TxRateLimiter: netLimiter(r),
			})
		})
	}
	calls = append(calls,
		func() error {
			return m.api.SetVsock(ctx, vmm.Vsock{GuestCID: guestCID, UDSPath: "/" + vsockSocket})
		},
		func() error {
			return m.api.SetBalloon(ctx, vmm.Balloon{DeflateOnOOM: true, StatsPollingIntervalS: balloonSeconds, FreePageReporting: true})
		},
		func() error { return m.api.SetEntropy(ctx, vmm.Entropy{}) },
		func() error { return m.api.Start(ctx) },
	)
	for _, call := range calls {
		if err := call(); err != nil {
			return err
		}
	}
	return nil
}
