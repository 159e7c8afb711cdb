package kvmprobe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// program is what the virtual CPU runs, in 64-bit mode at its highest privilege.
// It does once what every kernel does all the time, and reports each part by
// writing its number to a port.
const program = "\x48\xb8\x88\x77\x66\x55\x44\x33\x22\x11" + // movabs $0x1122334455667788, %rax
	"\x48\x89\x07" + //         mov %rax, (%rdi)       memory, through a mapping that is not the identity
	"\xb0\x01\xee" + //         mov $1, %al; out %al, (%dx)
	"\x0f\x20\xd8" + //         mov %cr3, %rax         control registers
	"\x0f\x22\xd8" + //         mov %rax, %cr3
	"\xb9\x01\x01\x00\xc0" + // mov $0xc0000101, %ecx  model-specific registers: GS base
	"\x0f\x32" + //             rdmsr
	"\x0f\x30" + //             wrmsr
	"\x31\xc0" + //             xor %eax, %eax
	"\x0f\xa2" + //             cpuid
	"\x66\xba\xa0\x05" + //     mov $0x5a0, %dx
	"\xb0\x02\xee" + //         mov $2, %al; out %al, (%dx)
	"\xcc" + //                 int3                   an exception, to handler and back
	"\xb0\x04\xee" + //         mov $4, %al; out %al, (%dx)
	"\xf4" //                   hlt

const handler = "\xb0\x03\xee" + // mov $3, %al; out %al, (%dx)
	"\x48\xcf" //                 iretq

// parts name what the program reports, in order, and its end.
func parts() []string {
	return []string{"write memory", "use privileged registers", "take an exception", "return from an exception", "halt"}
}

// Addresses in the guest's memory.
const (
	memorySize  = 2 << 20
	topTable    = 0x1000
	middleTable = 0x2000
	bottomTable = 0x3000
	gdtAddr     = 0x4000
	idtAddr     = 0x5000
	stackAddr   = 0x8000
	wordAddr    = 0x9000
	codeAddr    = 0x10000
	handlerAddr = 0x10100
	secondView  = memorySize // where memory is mapped once more
	reportPort  = 0x5a0
	word        = 0x1122334455667788
	tssAddr     = 0xfffbd000 // three pages that KVM wants for itself on some processors
	breakpoint  = 3          // the vector of int3
)

// Bits of control registers, of page table entries and of descriptors.
const (
	cr0Protected, cr0Paging                = 1 << 0, 1 << 31
	cr4PAE                                 = 1 << 5
	eferLongEnabled, eferLongActive        = 1 << 8, 1 << 10
	present, writable, large               = 1 << 0, 1 << 1, 1 << 7
	gdtCode, gdtData                uint64 = 0x00af9b000000ffff, 0x00cf93000000ffff
	codeSelector, dataSelector             = 0x08, 0x10
)

// vcpu is a virtual machine with one virtual CPU.
type vcpu struct {
	vm, cpu int
	memory  []byte // the guest's
	shared  []byte // struct kvm_run
}

// run makes a virtual machine and lets it run a program, which should do what
// program does.
func run(ctx context.Context, kvm int, code string) error {
	v := &vcpu{vm: -1, cpu: -1}
	if err := v.make(kvm); err != nil {
		v.free()
		return broken("one cannot be made: %v", err)
	}
	copy(v.memory[codeAddr:], code)
	thread, result := make(chan int, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		result <- v.execute()
	}()
	tid := <-thread
	timeout := time.NewTimer(Patience)
	defer timeout.Stop()
	why := fmt.Errorf("within %s", Patience)
	select {
	case err := <-result:
		v.free()
		return err
	case <-ctx.Done():
		why = context.Cause(ctx)
	case <-timeout.C:
	}
	return v.stop(tid, result, why)
}

// stop ends a CPU that runs on. The flag keeps it from going back into the
// guest, and a signal gets it out.
func (v *vcpu) stop(tid int, result <-chan error, why error) error {
	v.shared[1] = 1 // immediate_exit
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 500 {
		// Go's own signal for preemption: it has a handler, and one more does no harm.
		_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
		select {
		case err := <-result:
			v.free()
			if reached, ok := errors.AsType[*stopped](err); ok {
				return broken("one did not %s: %v", parts()[reached.part], why)
			}
			return err
		case <-tick.C:
		}
	}
	return broken("one cannot be stopped, and stays behind")
}

// stopped says that the CPU was stopped from outside before it came to a part.
type stopped struct{ part int }

func (s *stopped) Error() string { return "stopped before it could " + parts()[s.part] }

// make sets the machine up; free undoes as much of it as was done.
func (v *vcpu) make(kvm int) (err error) {
	if v.vm, err = ioctl(kvm, createVM, 0); err != nil {
		return fmt.Errorf("KVM_CREATE_VM: %w", err)
	}
	if _, err := ioctl(v.vm, setTSSAddr, tssAddr); err != nil {
		return fmt.Errorf("KVM_SET_TSS_ADDR: %w", err)
	}
	if v.memory, err = unix.Mmap(-1, 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return fmt.Errorf("its memory: %w", err)
	}
	region := userMemory{size: memorySize, host: uint64(uintptr(unsafe.Pointer(&v.memory[0])))}
	if err := ioctlAt(v.vm, setUserMemory, &region); err != nil {
		return fmt.Errorf("KVM_SET_USER_MEMORY_REGION: %w", err)
	}
	if v.cpu, err = ioctl(v.vm, createVCPU, 0); err != nil {
		return fmt.Errorf("KVM_CREATE_VCPU: %w", err)
	}
	size, err := ioctl(kvm, getVCPUMmapSize, 0)
	if err != nil {
		return fmt.Errorf("KVM_GET_VCPU_MMAP_SIZE: %w", err)
	}
	if v.shared, err = unix.Mmap(v.cpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("mapping its state: %w", err)
	}
	v.load()
	return v.setup(kvm)
}

func (v *vcpu) free() {
	for _, m := range [][]byte{v.shared, v.memory} {
		if m != nil {
			_ = unix.Munmap(m)
		}
	}
	for _, fd := range []int{v.cpu, v.vm} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// load fills the guest's memory: page tables that map it twice, descriptor
// tables, the handler.
func (v *vcpu) load() {
	put := func(at int, value uint64) { binary.LittleEndian.PutUint64(v.memory[at:], value) }
	put(topTable, middleTable|present|writable)
	put(middleTable, bottomTable|present|writable)
	put(bottomTable, 0|present|writable|large)
	put(bottomTable+8, 0|present|writable|large) // secondView
	put(gdtAddr+codeSelector, gdtCode)
	put(gdtAddr+dataSelector, gdtData)
	const interruptGate = 0x8e00 << 32
	put(idtAddr+16*breakpoint, interruptGate|handlerAddr>>16<<48|codeSelector<<16|handlerAddr&0xffff)
	copy(v.memory[handlerAddr:], handler)
}

// setup puts the CPU where a kernel is when it has set itself up.
func (v *vcpu) setup(kvm int) error {
	id := cpuid{count: cpuidEntries}
	if err := ioctlAt(kvm, getSupportedCPUID, &id); err != nil {
		return fmt.Errorf("KVM_GET_SUPPORTED_CPUID: %w", err)
	}
	if err := ioctlAt(v.cpu, setCPUID2, &id); err != nil {
		return fmt.Errorf("KVM_SET_CPUID2: %w", err)
	}
	var s specialRegisters
	if err := ioctlAt(v.cpu, getSregs, &s); err != nil {
		return fmt.Errorf("KVM_GET_SREGS: %w", err)
	}
	s.cs = segment{limit: 0xffffffff, selector: codeSelector, kind: 11, present: 1, s: 1, l: 1, g: 1}
	data := segment{limit: 0xffffffff, selector: dataSelector, kind: 3, present: 1, s: 1, db: 1, g: 1}
	s.ds, s.es, s.fs, s.gs, s.ss = data, data, data, data, data
	s.gdt = descriptorTable{base: gdtAddr, limit: 3*8 - 1}
	s.idt = descriptorTable{base: idtAddr, limit: 32*16 - 1}
	s.cr0 = s.cr0 | cr0Protected | cr0Paging
	s.cr3, s.cr4 = topTable, s.cr4|cr4PAE
	s.efer |= eferLongEnabled | eferLongActive
	if err := ioctlAt(v.cpu, setSregs, &s); err != nil {
		return fmt.Errorf("KVM_SET_SREGS: %w", err)
	}
	r := registers{rip: codeAddr, rsp: stackAddr, rdi: secondView + wordAddr, rdx: reportPort, rflags: 2}
	if err := ioctlAt(v.cpu, setRegs, &r); err != nil {
		return fmt.Errorf("KVM_SET_REGS: %w", err)
	}
	return nil
}

// execute runs the program and follows its reports.
func (v *vcpu) execute() error {
	all := parts()
	for part, name := range all {
		for {
			_, err := ioctl(v.cpu, runVCPU, 0)
			if err == nil {
				break
			}
			if v.shared[1] != 0 {
				return &stopped{part}
			}
			if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
				return broken("one could not %s: KVM_RUN: %v", name, err)
			}
		}
		last := part == len(all)-1
		if got := exit(v.shared); !last && got != report(part+1) || last && got != halted {
			return broken("one could not %s: it %s", name, got)
		}
	}
	if got := binary.LittleEndian.Uint64(v.memory[wordAddr:]); got != word {
		return broken("one wrote %#x to memory, not %#x", got, uint64(word))
	}
	return nil
}

const halted = "halted"

func report(part int) string { return fmt.Sprintf("wrote %d to port %#x", part, reportPort) }

// exit says why a CPU stopped, from its struct kvm_run.
func exit(shared []byte) string {
	const union = 32
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(shared[at:]) }
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(shared[at:]) }
	switch reason := u32(8); reason {
	case exitIO:
		data := u64(union + 8)
		if shared[union] != ioOut || shared[union+1] != 1 || data >= uint64(len(shared)) {
			return "used a port in a way that the program does not"
		}
		return fmt.Sprintf("wrote %d to port %#x", shared[data], binary.LittleEndian.Uint16(shared[union+2:]))
	case exitHalt:
		return halted
	case exitMMIO:
		return fmt.Sprintf("touched address %#x, where no memory is", u64(union))
	case exitShutdown:
		return "shut down after three faults in a row (KVM_EXIT_SHUTDOWN)"
	case exitFailEntry:
		return fmt.Sprintf("was not entered: hardware reason %#x (KVM_EXIT_FAIL_ENTRY)", u64(union))
	case exitInternalError:
		return fmt.Sprintf("stopped: error %d inside KVM (KVM_EXIT_INTERNAL_ERROR)", u32(union))
	default:
		return fmt.Sprintf("stopped for KVM's reason %d", reason)
	}
}
