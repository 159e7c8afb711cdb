package machines

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"hearth/internal/app"
	"hearth/internal/driver/microvm/cpio"
	"hearth/internal/hearth"
)

// firstLine is what the only program of the plain guest prints.
const firstLine = "hearth-bench: userland"

// plainQEMU boots the node's kernel in QEMU's default machine, as anybody would,
// with an initramfs that holds one tiny program, and returns how long it took
// from the start of QEMU to that program's first line.
func (l *lab) plainQEMU(ctx context.Context, isolation hearth.Isolation, memory int) (time.Duration, error) {
	if runtime.GOARCH != "amd64" {
		return 0, hearth.Errorf(hearth.Unimplemented, "the program for the plain guest is there for x86-64 only")
	}
	kernel, err := app.GuestKernel(ctx, l.cfg)
	if err != nil {
		return 0, err
	}
	initrd := filepath.Join(l.dir, "plain-initrd")
	if err := writeInitrd(initrd); err != nil {
		return 0, err
	}
	program := l.cfg.Node.QEMU.Binary
	if program == "" {
		program = "qemu-system-x86_64"
	}
	cpu := []string{"-accel", "kvm", "-cpu", "host"}
	if isolation == hearth.EmulatedVM {
		cpu = []string{"-accel", "tcg", "-cpu", "max"}
	}
	ctx, cancel := context.WithCancel(ctx) // ends QEMU when its line has come
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append(cpu,
		"-m", strconv.Itoa(memory), "-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none", "-no-reboot",
		"-kernel", kernel.Kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL} // ^C is ours to handle
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	console, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, hearth.Wrap(hearth.FailedPrecondition, err, "plain QEMU cannot be started")
	}
	var took time.Duration
	for lines := bufio.NewScanner(console); lines.Scan(); {
		if strings.Contains(lines.Text(), firstLine) {
			took = time.Since(began)
			break
		}
	}
	why := context.Cause(ctx)
	cancel()
	err = cmd.Wait() // it was killed, if all went well
	if took == 0 {
		if why != nil {
			err = why
		}
		return 0, hearth.Wrap(hearth.Internal, err, "plain QEMU came to no program: %.200q", strings.TrimSpace(complaint.String()))
	}
	return took, nil
}

func writeInitrd(path string) error {
	var b bytes.Buffer
	err := cpio.Write(&b, []cpio.Entry{
		{Name: "dev", Mode: cpio.Dir | 0o755},
		{Name: "dev/console", Mode: cpio.Device | 0o600, Major: 5, Minor: 1},
		{Name: "init", Mode: cpio.Regular | 0o755, Data: printAndWait(firstLine + "\n")},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o600)
}

// printAndWait is an ELF program for x86-64 Linux of one segment: it writes a line
// to its standard output and then waits for ever.
func printAndWait(line string) []byte {
	const base, header = 0x400000, 64 + 56
	u32 := func(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }
	code := bytes.Join([][]byte{
		{0xb8}, u32(1), // mov eax, write
		{0xbf}, u32(1), // mov edi, stdout
		{0x48, 0x8d, 0x35}, u32(16), // lea rsi, [rip+16]: the line is behind the code
		{0xba}, u32(uint32(len(line))), // mov edx, length
		{0x0f, 0x05},                  // syscall
		{0xb8}, u32(34), {0x0f, 0x05}, // again: mov eax, pause; syscall
		{0xeb, 0xf7}, // jmp again
		[]byte(line),
	}, nil)
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	size := uint64(header + len(code))
	for _, field := range []any{
		uint16(2), uint16(62), uint32(1), uint64(base + header), // executable, x86-64, version, entry
		uint64(64), uint64(0), uint32(0), // program headers, sections, flags
		uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0), // sizes and counts
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x1000), // load, read and execute
	} {
		_ = binary.Write(&b, binary.LittleEndian, field) // a buffer takes all
	}
	b.Write(code)
	return b.Bytes()
}
