package microvm

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
)

// metaPackage depends on the newest kernel that Debian makes for machines like these.
const metaPackage = "linux-image-cloud-amd64"

// debianDir, in the cache, holds vmlinuz and modules of the unpacked package.
// It stays as it is until somebody removes it: another kernel would make every
// snapshot of before worthless.
const debianDir = "debian-kernel"

var imagePattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`linux-image-[a-z0-9.+-]+`) })

// debianKernel returns kernel and modules directory of the unpacked package,
// which it fetches once.
func debianKernel(ctx context.Context, cache string) (kernel, modules string, err error) {
	dir := filepath.Join(cache, debianDir)
	kernel, modules = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "modules")
	unlock, err := lock(ctx, filepath.Join(cache, ".lock"))
	if err != nil {
		return "", "", err
	}
	defer unlock()
	if _, err := os.Stat(kernel); err == nil {
		return kernel, modules, nil
	}
	cut, _ := filepath.Glob(filepath.Join(cache, ".fetch-*")) // short by a crash: who fetches has the lock
	for _, dir := range cut {
		_ = os.RemoveAll(dir)
	}
	tmp, err := os.MkdirTemp(cache, ".fetch-")
	if err != nil {
		return "", "", hearth.Wrap(hearth.FailedPrecondition, err, "the kernel cache cannot be written")
	}
	defer os.RemoveAll(tmp)
	deb, err := fetchPackage(ctx, tmp)
	if err != nil {
		return "", "", err
	}
	out := filepath.Join(tmp, "out")
	if err := extractKernel(ctx, deb, out); err != nil {
		return "", "", err
	}
	if err := errors.Join(syncAll(out), os.RemoveAll(dir), os.Rename(out, dir)); err != nil {
		return "", "", hearth.Wrap(hearth.FailedPrecondition, err, "the kernel cache cannot be written")
	}
	return kernel, modules, nil
}

// lock holds a lock file alone.
func lock(ctx context.Context, path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, hearth.Wrap(hearth.FailedPrecondition, err, "the kernel cache cannot be written")
	}
	got := make(chan error, 1)
	go func() { got <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
	select {
	case err := <-got:
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		return func() { _ = f.Close() }, nil
	case <-ctx.Done():
		go func() { // the call cannot be interrupted; what it gets is given back
			<-got
			_ = f.Close()
		}()
		return nil, ctx.Err()
	}
}

// fetchPackage downloads the kernel's package into dir with the host's apt,
// which checks its signature.
func fetchPackage(ctx context.Context, dir string) (string, error) {
	text, err := tool(ctx, dir, "apt-cache", "show", "--no-all-versions", metaPackage)
	if err != nil {
		return "", err
	}
	name := ""
	for line := range strings.Lines(text) {
		if deps, ok := strings.CutPrefix(line, "Depends:"); ok {
			name = imagePattern().FindString(deps)
		}
	}
	if name == "" {
		return "", hearth.Errorf(hearth.FailedPrecondition, "apt does not say which kernel %s stands for; run apt-get update, or set the kernel's path", metaPackage)
	}
	// Its own user for downloads could not write to a directory of ours.
	if _, err := tool(ctx, dir, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name); err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(found) != 1 {
		return "", hearth.Errorf(hearth.FailedPrecondition, "apt-get download %s left %d packages", name, len(found))
	}
	return found[0], nil
}

// tool runs a program of the host and returns what it says.
func tool(ctx context.Context, dir, name string, args ...string) (string, error) {
	runtime.LockOSThread() // whose end is the parent's to the kernel
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	switch {
	case err == nil:
		return string(out), nil
	case ctx.Err() != nil:
		return "", ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return "", hearth.Errorf(hearth.FailedPrecondition, "%s is missing: a guest kernel from Debian's packages needs a Debian host; set the kernel's path instead", name)
	}
	return "", hearth.Wrap(hearth.FailedPrecondition, err, "%s failed: %s", name, lastLine(stderr.String()))
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	s = s[strings.LastIndexByte(s, '\n')+1:]
	return s[:min(len(s), 300)]
}

// extractKernel unpacks vmlinuz and the modules of deb into the new directory out.
func extractKernel(ctx context.Context, deb, out string) error {
	if err := os.MkdirAll(filepath.Join(out, "modules"), 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return hearth.Wrap(hearth.FailedPrecondition, err, "dpkg-deb cannot be run")
	}
	kernels, err := extractTar(tar.NewReader(pipe), out)
	if err != nil {
		_ = cmd.Process.Kill()
	}
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return hearth.Wrap(hearth.FailedPrecondition, err, "the kernel's package cannot be unpacked")
	}
	if kernels != 1 {
		return hearth.Errorf(hearth.FailedPrecondition, "the kernel's package holds %d kernels, want one", kernels)
	}
	return nil
}

// extractTar writes what is needed of a kernel's package, under names of our own.
func extractTar(in *tar.Reader, out string) (kernels int, err error) {
	for {
		h, err := in.Next()
		if err == io.EOF {
			return kernels, nil
		}
		if err != nil {
			return kernels, err
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/usr")
		to := ""
		switch {
		case h.Typeflag != tar.TypeReg:
		case strings.HasPrefix(name, "/boot/vmlinuz-"):
			to = filepath.Join(out, "vmlinuz")
			kernels++
		case strings.HasPrefix(name, "/lib/modules/") && strings.Contains(path.Base(name), ".ko"):
			to = filepath.Join(out, "modules", path.Base(name))
		}
		if to == "" {
			continue
		}
		if err := createFile(to, io.LimitReader(in, maxKernel)); err != nil {
			return kernels, err
		}
	}
}

// createFile writes a new read-only file.
func createFile(path string, from io.Reader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

// syncAll writes the file system that dir is on to its disk.
func syncAll(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}
