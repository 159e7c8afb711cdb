package vminit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	newRoot    = "/root"
	guestMount = "/.guest"
	diskTime   = 10 * time.Second // for a disk to appear
	diskRetry  = 2 * time.Millisecond
)

// mountOwn makes the initramfs fit for hearth-init itself.
func mountOwn() error {
	return mountAll([]mount{
		{"/proc", "proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"/sys", "sysfs", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"/dev", "devtmpfs", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"/sys/fs/cgroup", "cgroup2", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "nsdelegate"},
	})
}

type mount struct {
	target, source, kind string
	flags                uintptr
	data                 string
}

func mountAll(list []mount) error {
	for _, m := range list {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("directory %s: %w", m.target, err)
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
		}
	}
	return nil
}

// loadModules loads the modules of dir in the order of their names and frees
// their files. What is there already, and what the CPU lacks, is no fault.
func loadModules(dir string) []error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		if err := loadModule(path); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("module %s: %w", f.Name(), err))
		}
		_ = os.Remove(path)
	}
	return errs
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// mountRoot mounts the layers, and over them the disk, at newRoot.
func mountRoot(o options) error {
	var lower []string
	for i, dev := range o.layers {
		target := fmt.Sprintf("/layers/%d", i)
		if err := mountDisk(dev, mount{target, "", "erofs", unix.MS_RDONLY, ""}); err != nil {
			return err
		}
		lower = append(lower, target)
	}
	slices.Reverse(lower) // overlayfs wants the highest first
	// Blocks of deleted files are given back to the host.
	if err := mountDisk(o.disk, mount{diskMount, "", "ext4", unix.MS_NOATIME, "discard"}); err != nil {
		return err
	}
	if err := prepareDisk(lower[0]); err != nil {
		return err
	}
	// Nothing in it need be synced: a disk outlives the memory of the machine that
	// writes it only when the host asked for that (see disk).
	data := "redirect_dir=on,volatile,upperdir=" + diskMount + "/upper,workdir=" + diskMount + "/work,lowerdir=" + strings.Join(lower, ":")
	if err := mountAll([]mount{{newRoot, "overlay", "overlay", unix.MS_NOATIME, data}}); err != nil {
		return err
	}
	if o.guest != "" {
		return mountDisk(o.guest, mount{newRoot + guestMount, "", "erofs", unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV, ""})
	}
	return nil
}

// prepareDisk makes what overlayfs wants on the disk. One that has been another
// machine's has its files already, and a mark that it was not unmounted, in work.
func prepareDisk(highest string) error {
	_ = os.Remove(diskMount + "/lost+found")
	if err := os.RemoveAll(diskMount + "/work"); err != nil {
		return err
	}
	if err := os.Mkdir(diskMount+"/work", 0o755); err != nil {
		return err
	}
	err := os.Mkdir(diskMount+"/upper", 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return copyRootMode(highest)
}

// copyRootMode gives the root directory the mode and owner of the highest layer's.
func copyRootMode(layer string) error {
	var st unix.Stat_t
	if err := unix.Stat(layer, &st); err != nil {
		return err
	}
	return errors.Join(unix.Chmod(diskMount+"/upper", st.Mode&0o7777), unix.Chown(diskMount+"/upper", int(st.Uid), int(st.Gid)))
}

// mountDisk mounts a disk once it has appeared.
func mountDisk(dev string, m mount) error {
	m.source = "/dev/" + dev
	for began := time.Now(); ; time.Sleep(diskRetry) {
		_, err := os.Stat(m.source)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || time.Since(began) > diskTime {
			return fmt.Errorf("disk %s: %w", dev, err)
		}
	}
	return mountAll([]mount{m})
}
