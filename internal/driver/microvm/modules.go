package microvm

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"hearth/internal/hearth"
)

// wanted are the modules that a machine needs, as far as its kernel has not got
// them built in. tcp_diag lets hearth-init end connections of another life.
func wanted() []string {
	return []string{
		"virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "virtio_balloon",
		"overlay", "erofs", "vmw_vsock_virtio_transport", "tcp_diag", "af_packet",
	}
}

// module is one kernel module, unpacked.
type module struct {
	name string // with underscores
	data []byte
}

// moduleTree is a kernel's /lib/modules/VERSION: where each module's file is.
type moduleTree map[string]string

// readModuleTree looks for modules below dir.
func readModuleTree(dir string) (moduleTree, error) {
	tree := moduleTree{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		stem, _, ok := strings.Cut(d.Name(), ".ko")
		if ok && d.Type().IsRegular() {
			tree[moduleName(stem)] = path
		}
		return nil
	})
	if err != nil {
		return nil, hearth.Wrap(hearth.InvalidArgument, err, "the kernel's modules cannot be read")
	}
	if len(tree) == 0 {
		return nil, hearth.Errorf(hearth.InvalidArgument, "there are no modules below %s", dir)
	}
	return tree, nil
}

// moduleName is the one of a module's two spellings that counts.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// load returns names and what they need, in the order in which they can be
// loaded. Modules that the tree lacks are left out: they are built in, or the
// kernel does without, and hearth-init says what it misses.
func (t moduleTree) load(ctx context.Context, names []string, release string) ([]module, error) {
	var list []module
	seen := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		path, ok := t[name]
		if seen[name] || !ok {
			return nil
		}
		seen[name] = true
		raw, err := os.ReadFile(path)
		if err != nil {
			return hearth.Wrap(hearth.InvalidArgument, err, "module %s cannot be read", name)
		}
		if !bytes.HasPrefix(raw, []byte(elf.ELFMAG)) {
			if raw, err = unpack(ctx, raw, maxModule); err != nil {
				return fmt.Errorf("module %s: %w", name, err)
			}
		}
		info, err := moduleInfo(raw)
		if err != nil {
			return hearth.Wrap(hearth.InvalidArgument, err, "module %s is damaged", name)
		}
		if magic, _, _ := strings.Cut(info["vermagic"], " "); magic != release {
			return hearth.Errorf(hearth.InvalidArgument, "module %s is for kernel %q, and the kernel is %q", name, magic, release)
		}
		for _, need := range strings.Split(info["depends"], ",") {
			if err := visit(moduleName(need)); err != nil {
				return err
			}
		}
		list = append(list, module{name: name, data: raw})
		return nil
	}
	for _, n := range names {
		if err := visit(n); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// moduleInfo returns what a module says of itself.
func moduleInfo(raw []byte) (map[string]string, error) {
	f, err := elf.NewFile(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("it says nothing of itself")
	}
	data, err := s.Data()
	if err != nil {
		return nil, err
	}
	info := map[string]string{}
	for field := range strings.SplitSeq(string(data), "\x00") {
		if k, v, ok := strings.Cut(field, "="); ok && info[k] == "" {
			info[k] = v
		}
	}
	return info, nil
}
