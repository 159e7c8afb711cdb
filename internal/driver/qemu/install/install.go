// Package install finds the host's QEMU: the program, all files that it reads,
// and whether it can do what machines need.
package install

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"hearth/internal/driver/qemu/qmp"
	"hearth/internal/hearth"
)

const (
	// FirmwareFile is what a machine executes first.
	FirmwareFile = "qboot.rom"
	// SaveCommand makes QEMU write the state of its devices.
	SaveCommand = "xen-save-devices-state"

	defaultProgram = "qemu-system-x86_64"
	nobody         = 65534
	askTime        = 20 * time.Second
)

// Installation is a QEMU that can run machines.
type Installation struct {
	Program  string
	Firmware string   // directory
	Files    []string // that QEMU needs to see: itself, its libraries, modules and firmware
	Dirs     []string // of libraries
	Version  qmp.Version
}

// Emulation says whether QEMU will execute guests itself.
type Emulation int

// The emulations.
const (
	Hardware Emulation = iota
	Emulated
)

// Find finds QEMU and its firmware's directory, or looks at those that are given.
func Find(programPath, firmwareDir string) (*Installation, error) {
	f := &Installation{}
	var err error
	if f.Program, err = program(programPath); err != nil {
		return nil, err
	}
	if f.Firmware, err = firmware(firmwareDir); err != nil {
		return nil, err
	}
	return f, nil
}

// Inspect finds out what else there is to know.
func (f *Installation) Inspect(ctx context.Context, emulate Emulation) error {
	if err := f.findFiles(ctx, emulate); err != nil {
		return err
	}
	var err error
	f.Version, err = askProgram(ctx, f.Program)
	return err
}

// program finds QEMU.
func program(configured string) (string, error) {
	path, err := exec.LookPath(cmp.Or(configured, defaultProgram))
	if err != nil {
		return "", hearth.Wrap(hearth.FailedPrecondition, err,
			"%s is not there: install the package qemu-system-x86, or set node.qemu.binary", cmp.Or(configured, defaultProgram))
	}
	if path, err = filepath.Abs(path); err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", hearth.Wrap(hearth.FailedPrecondition, err, "QEMU cannot be found")
	}
	return path, nil
}

// firmware finds the directory with the machine's first instructions.
func firmware(configured string) (string, error) {
	dirs := []string{configured}
	if configured == "" {
		dirs = []string{"/usr/share/qemu", "/usr/local/share/qemu", "/usr/share/qemu-kvm", "/usr/lib/qemu"}
	}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, FirmwareFile)); err == nil {
			return dir, nil
		}
	}
	return "", hearth.Errorf(hearth.FailedPrecondition,
		"%s is in none of %s: install the package qemu-system-data", FirmwareFile, strings.Join(dirs, ", "))
}

// findFiles lists what QEMU reads: its firmware, and the program, the emulator's
// module where the distribution has made it one, and their libraries, as the
// system's loader finds them.
func (f *Installation) findFiles(ctx context.Context, emulate Emulation) error {
	objects := []string{f.Program}
	if emulate == Emulated {
		for _, dir := range []string{"/usr/lib/x86_64-linux-gnu/qemu", "/usr/lib64/qemu", "/usr/lib64/qemu-kvm", "/usr/lib/qemu", "/usr/local/lib/x86_64-linux-gnu/qemu"} {
			if module := filepath.Join(dir, "accel-tcg-x86_64.so"); exists(module) {
				objects = append(objects, module)
			}
		}
	}
	for _, name := range []string{FirmwareFile, "pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin"} {
		if path := filepath.Join(f.Firmware, name); exists(path) {
			f.Files = append(f.Files, path)
		}
	}
	loader, err := loaderOf(f.Program)
	if err != nil {
		return hearth.Wrap(hearth.FailedPrecondition, err, "%s is no program of this system", f.Program)
	}
	f.Files = append(f.Files, objects...)
	if loader == "" {
		return nil // everything is in it
	}
	f.Files = append(f.Files, loader)
	for _, object := range objects {
		libraries, err := librariesOf(ctx, loader, object)
		if err != nil {
			return hearth.Wrap(hearth.FailedPrecondition, err, "libraries of %s cannot be found", object)
		}
		f.Files = append(f.Files, libraries...)
	}
	slices.Sort(f.Files)
	f.Files = slices.Compact(f.Files)
	for _, path := range f.Files {
		if strings.Contains(path, ".so") && !slices.Contains(f.Dirs, filepath.Dir(path)) {
			f.Dirs = append(f.Dirs, filepath.Dir(path))
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// loaderOf names the loader that a program asks for; empty when it asks for none.
func loaderOf(program string) (string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return "", fmt.Errorf("it is for %s", f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			raw := make([]byte, min(p.Filesz, 4096))
			if _, err := p.ReadAt(raw, 0); err != nil {
				return "", err
			}
			return strings.TrimRight(string(raw), "\x00"), nil
		}
	}
	return "", nil
}

// librariesOf asks the loader, which prints "name => path (address)".
func librariesOf(ctx context.Context, loader, object string) ([]string, error) {
	cmd := exec.CommandContext(ctx, loader, "--list", object)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var list []string
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		_, path, ok := strings.Cut(lines.Text(), "=> ")
		if path, _, _ = strings.Cut(path, " ("); ok && filepath.IsAbs(path) {
			list = append(list, path)
		}
	}
	return list, lines.Err()
}

// askProgram starts QEMU without a machine, as nobody, and asks what it can do.
func askProgram(ctx context.Context, program string) (qmp.Version, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-qmp", "stdio")
	cmd.Env, cmd.Dir = []string{"LC_ALL=C"}, "/"
	// It does not end with its standard input: it must with us, or rather with
	// the thread that starts it, which therefore stays this function's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return qmp.Version{}, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return qmp.Version{}, err
	}
	if err := cmd.Start(); err != nil {
		return qmp.Version{}, hearth.Wrap(hearth.FailedPrecondition, err, "%s cannot be executed", program)
	}
	version, err := askQEMU(ctx, in, out)
	cancel()
	_ = cmd.Wait() // it was killed, or has said why not
	if err != nil && hearth.KindOf(err) != hearth.FailedPrecondition {
		return version, hearth.Wrap(hearth.FailedPrecondition, fmt.Errorf("%w; it says %q", err, lastBytes(stderr.Bytes(), 500)),
			"%s does not answer as QEMU does", program)
	}
	return version, err
}

func lastBytes(b []byte, n int) string {
	b = bytes.TrimSpace(bytes.Trim(b, "\x00"))
	return string(b[max(0, len(b)-n):])
}

// named is an element of QEMU's lists.
type named struct {
	Name string `json:"name"`
}

func askQEMU(ctx context.Context, in io.Writer, out io.Reader) (qmp.Version, error) {
	c, err := qmp.Talk(in, out)
	if err != nil {
		return qmp.Version{}, err
	}
	v := c.Version()
	if v.Older(7, 2) {
		return v, hearth.Errorf(hearth.FailedPrecondition, "QEMU %s is too old: install 7.2 or newer, which Debian has since 12, or name another with node.qemu.binary", v)
	}
	for command, what := range map[string]string{"query-commands": SaveCommand, "query-machines": "microvm"} {
		var list []named
		if err := c.Ask(ctx, command, &list); err != nil {
			return v, err
		}
		if !slices.ContainsFunc(list, func(e named) bool { return e.Name == what }) {
			return v, hearth.Errorf(hearth.FailedPrecondition, "QEMU %s was built without %q: install the distribution's qemu-system-x86", v, what)
		}
	}
	return v, nil
}
