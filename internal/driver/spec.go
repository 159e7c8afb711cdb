package driver

import (
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"hearth/internal/hearth"
)

// idPattern matches what may name a machine: short enough for a cgroup, a
// directory and a host name, and without a character that means anything to
// any of them.
var idPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}$`) })

// CheckID returns an InvalidArgument error unless id may name a machine.
func CheckID(id string) error {
	if !idPattern().MatchString(id) {
		return hearth.Errorf(hearth.InvalidArgument, "id %q is not 1 to 40 characters of [a-z0-9-], the first a letter or digit", id)
	}
	return nil
}

// CheckSweep returns an InvalidArgument error unless what the handle names can be
// swept: its ID and Dir are a machine's.
func (h Handle) CheckSweep() error {
	if err := CheckID(h.ID); err != nil {
		return err
	}
	if !filepath.IsAbs(h.Dir) || filepath.Clean(h.Dir) == "/" {
		return hearth.Errorf(hearth.InvalidArgument, "dir %q is not an absolute directory", h.Dir)
	}
	return nil
}

// CheckAttach returns a NotFound error unless a machine of the named driver can
// have this handle.
func (h Handle) CheckAttach(name string) error {
	err := CheckID(h.ID)
	if h.Driver != name {
		err = hearth.Errorf(hearth.InvalidArgument, "handle of driver %q", h.Driver)
	}
	if err != nil {
		return h.Gone(err)
	}
	return nil
}

// Gone is the NotFound error of Attach, with the reason.
func (h Handle) Gone(why error) error {
	return hearth.Wrap(hearth.NotFound, why, "machine %s is gone", h.ID)
}

// Check returns an InvalidArgument error that names the first field of the
// spec that no driver can accept. It looks at the disk: Dir must be there and
// empty, layers must be there.
func (s Spec) Check() error {
	if err := CheckID(s.ID); err != nil {
		return err
	}
	if !filepath.IsAbs(s.Dir) {
		return hearth.Errorf(hearth.InvalidArgument, "dir %q is not absolute", s.Dir)
	}
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		return hearth.Wrap(hearth.InvalidArgument, err, "dir cannot be read")
	}
	if len(entries) > 0 {
		return hearth.Errorf(hearth.InvalidArgument, "dir is not empty: it holds %q", entries[0].Name())
	}
	for _, l := range s.Layers {
		if !filepath.IsAbs(l) {
			return hearth.Errorf(hearth.InvalidArgument, "layer %q is not absolute", l)
		}
		if _, err := os.Stat(l); err != nil {
			return hearth.Wrap(hearth.InvalidArgument, err, "layer %s cannot be read", filepath.Base(l))
		}
	}
	return s.checkSizes()
}

func (s Spec) checkSizes() error {
	r := s.Resources
	switch {
	case r.VCPUs < 1 || r.VCPUs > 1024:
		return hearth.Errorf(hearth.InvalidArgument, "vcpus %d is not within 1 to 1024", r.VCPUs)
	case r.MemoryMiB < 32 || r.MemoryMiB > 4<<20:
		return hearth.Errorf(hearth.InvalidArgument, "memory_mib %d is not within 32 to %d", r.MemoryMiB, 4<<20)
	case r.DiskMiB < 1 || r.DiskMiB > 64<<20:
		return hearth.Errorf(hearth.InvalidArgument, "disk_mib %d is not within 1 to %d", r.DiskMiB, 64<<20)
	case len(s.Hostname) > 64:
		return hearth.Errorf(hearth.InvalidArgument, "hostname is longer than 64 bytes")
	}
	return nil
}
