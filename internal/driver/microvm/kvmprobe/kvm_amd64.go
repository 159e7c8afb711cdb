package kvmprobe

//lint:file-ignore U1000 The structures are as long as the kernel's, whatever of them is used.

// ioctl requests and structures of KVM on x86-64; from linux/kvm.h and asm/kvm.h.
const (
	getSupportedCPUID = 0xc008ae05
	setTSSAddr        = 0xae47
	setRegs           = 0x4090ae82
	getSregs          = 0x8138ae83
	setSregs          = 0x4138ae84
	setCPUID2         = 0x4008ae90
)

// Reasons for which KVM_RUN returns.
const (
	exitIO            = 2
	exitHalt          = 5
	exitMMIO          = 6
	exitShutdown      = 8
	exitFailEntry     = 9
	exitInternalError = 17
)

// ioOut is the direction of an exitIO that writes.
const ioOut = 1

// cpuidEntries is more than any processor has.
const cpuidEntries = 256

type (
	userMemory struct {
		slot, flags       uint32
		guest, size, host uint64
	}

	registers struct {
		rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
		r8, r9, r10, r11, r12, r13, r14, r15   uint64
		rip, rflags                            uint64
	}

	segment struct {
		base                            uint64
		limit                           uint32
		selector                        uint16
		kind, present, dpl, db, s, l, g uint8
		avl, unusable, _                uint8
	}

	descriptorTable struct {
		base  uint64
		limit uint16
		_     [3]uint16
	}

	specialRegisters struct {
		cs, ds, es, fs, gs, ss  segment
		tr, ldt                 segment
		gdt, idt                descriptorTable
		cr0, cr2, cr3, cr4, cr8 uint64
		efer, apicBase          uint64
		interrupts              [4]uint64
	}

	cpuid struct {
		count, _ uint32
		entries  [cpuidEntries][10]uint32
	}
)
