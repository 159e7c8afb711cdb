package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"hearth/internal/hearth"
)

// Debian is a Source of the host's own Debian release: the smallest system and
// the given packages, without recommended ones, documentation, manual pages and
// translations, and Python packages on top.
type Debian struct {
	spec    DebianSpec
	cache   *Cache
	release string // os-release of the host
}

// DebianSpec says what a Debian source holds.
type DebianSpec struct {
	Packages []string          // Debian packages
	Python   []string          // requirements ("numpy", "pandas>=2.2,<3"), from wheels; Packages must have python3-pip
	Drop     []string          // Python packages to remove again: required by others, needed by nobody
	Files    map[string]string // content by absolute path; plain files of root, mode 0644
}

const maxSpec = 500 // names in each list of a DebianSpec

// Compiled when used, not whenever a sandbox executes this program: 1 ms.
var debianNameRE = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{1,99}$`) })
var pythonSpecRE = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(\[[A-Za-z0-9,._-]{1,99}\])?([=<>!~]=?[0-9A-Za-z.*+!-]{1,40}(,[=<>!~]=?[0-9A-Za-z.*+!-]{1,40})*)?$`)
})

// NewDebian checks the names. cache keeps the unpacked packages, so that two
// sources with the same Packages share the long part.
func NewDebian(cache *Cache, spec DebianSpec) (*Debian, error) {
	d := &Debian{cache: cache, release: "/etc/os-release", spec: DebianSpec{
		Packages: sorted(spec.Packages), Python: sorted(spec.Python), Drop: sorted(spec.Drop), Files: maps.Clone(spec.Files),
	}}
	for _, l := range []struct {
		field, what string
		list        []string
		re          *regexp.Regexp
	}{
		{"packages", "the name of a Debian package", d.spec.Packages, debianNameRE()},
		{"python", "a requirement such as name>=1.2,<2", d.spec.Python, pythonSpecRE()},
		{"drop", "the name of a Python package", d.spec.Drop, pythonSpecRE()},
	} {
		if len(l.list) > maxSpec {
			return nil, hearth.Errorf(hearth.InvalidArgument, "%s: %d names are more than the %d allowed", l.field, len(l.list), maxSpec)
		}
		for _, p := range l.list {
			if !l.re.MatchString(p) {
				return nil, hearth.Errorf(hearth.InvalidArgument, "%s: %.100q is not %s", l.field, p, l.what)
			}
		}
	}
	for name := range d.spec.Files {
		if !path.IsAbs(name) || path.Clean(name) != name || len(name) > maxPath || name == "/" {
			return nil, hearth.Errorf(hearth.InvalidArgument, "files: %.100q is not a clean absolute path", name)
		}
	}
	if len(spec.Python) > 0 && !slices.Contains(spec.Packages, "python3-pip") {
		return nil, hearth.Errorf(hearth.InvalidArgument, "python: packages need the Debian package python3-pip in the list")
	}
	return d, nil
}

func sorted(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}

func (d *Debian) systemKey(h *aptHost) string {
	return digest(append([]string{"debian", formatVersion, h.arch, strings.Join(d.spec.Packages, " ")}, h.suites()...)...)
}

// Key implements Source. It does not name the versions of the packages: an
// image is made of what the archive has when it is made, and kept.
func (d *Debian) Key(ctx context.Context) (string, error) {
	h, err := readAptHost(ctx, d.release)
	if err != nil {
		return "", err
	}
	parts := []string{"layers", formatVersion, d.systemKey(h), strings.Join(d.spec.Python, "\n"), strings.Join(d.spec.Drop, "\n")}
	for _, name := range slices.Sorted(maps.Keys(d.spec.Files)) {
		parts = append(parts, name, d.spec.Files[name])
	}
	return digest(parts...), nil
}

// Unpack implements Source.
func (d *Debian) Unpack(ctx context.Context, dir string, report Progress) error {
	h, err := readAptHost(ctx, d.release)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), ".debian-")
	if err != nil {
		return diskError(err, filepath.Dir(dir))
	}
	defer os.RemoveAll(work)
	var p *pip
	if len(d.spec.Python) > 0 {
		version, err := h.python(ctx)
		if err != nil {
			return err
		}
		if p, err = newPip(ctx, version, filepath.Join(work, "wheels")); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	if p != nil { // the network is idle while dpkg is busy
		g.Go(func() error { return p.download(gctx, d.spec.Python, report) })
	}
	g.Go(func() error { return d.system(gctx, h, dir, report) })
	if err := g.Wait(); err != nil {
		return diskError(err, dir)
	}
	if p != nil {
		if err := p.install(ctx, dir, d.spec, report); err != nil {
			return diskError(err, dir)
		}
	}
	return diskError(d.files(dir), dir)
}

// files writes the plain files of the spec.
func (d *Debian) files(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for name, content := range d.spec.Files {
		name = name[1:]
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		if err := replaceFile(root, name, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// system unpacks the Debian packages into dir, from the cache if they are there.
func (d *Debian) system(ctx context.Context, h *aptHost, dir string, report Progress) error {
	start := time.Now()
	entry, err := d.cache.Take(ctx, d.systemKey(h)+".tar", func(ctx context.Context, out string) error {
		return d.bootstrap(ctx, h, out, report)
	})
	if err != nil {
		return err
	}
	f, err := os.Open(entry.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u := newUnpacker(root, DefaultLimits())
	if err := u.layer(ctx, f); err != nil {
		return err
	}
	if err := u.finish(); err != nil {
		return err
	}
	err = errors.Join(
		root.RemoveAll("etc/apt/sources.list.d"), root.MkdirAll("etc/apt/sources.list.d", 0o755),
		root.WriteFile("etc/apt/sources.list", []byte(h.inside()), 0o644))
	report.send(start, Event{Step: "packages", Message: "unpacked the Debian packages", Done: u.bytes, Total: u.bytes, Unit: "bytes"})
	return err
}

// excluded is what no sandbox reads.
var excluded = []string{
	"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*",
	"/usr/share/doc-base/*", "/usr/share/bug/*",
}

// bootstrap runs mmdebstrap, which writes the root file system as a tarball.
func (d *Debian) bootstrap(ctx context.Context, h *aptHost, out string, report Progress) error {
	start := time.Now()
	work, err := os.MkdirTemp(filepath.Dir(out), ".bootstrap-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	conf, list := filepath.Join(work, "apt.conf"), filepath.Join(work, "sources.list")
	if err := errors.Join(os.WriteFile(conf, []byte(h.conf()), 0o600), os.WriteFile(list, []byte(h.list()), 0o600)); err != nil {
		return err
	}
	args := []string{
		"--mode=root", "--variant=minbase", "--format=tar", "--architectures=" + h.arch,
		"--aptopt=" + conf, "--dpkgopt=force-unsafe-io",
	}
	for _, e := range excluded {
		args = append(args, "--dpkgopt=path-exclude="+e)
	}
	args = append(args,
		`--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1"/etc/apt/sources.list.d/* "$1/etc/resolv.conf" "$1/etc/hostname"`,
		`--customize-hook=rm -rf "$1"/var/log/apt/* "$1"/var/log/*.log "$1"/var/cache/debconf/*-old "$1"/var/lib/dpkg/*-old "$1"/var/cache/ldconfig/aux-cache`)
	if len(d.spec.Packages) > 0 {
		args = append(args, "--include="+strings.Join(d.spec.Packages, ","))
	}
	report.say(start, "packages", "installing %d Debian packages and what they need (%s, %s)", len(d.spec.Packages), h.codename, h.arch)
	mount := scratchMount()
	line := func(s string) {
		for _, told := range []string{"running apt-get", "downloading", "extracting", "installing", "creating"} {
			if m, ok := strings.CutPrefix(s, "I: "); ok && strings.HasPrefix(m, told) {
				report.say(start, "packages", "%s", strings.TrimSuffix(m, "..."))
			}
		}
	}
	args = append(args, h.codename, out, list)
	err = mmdebstrap(ctx, work, mount, args, line)
	if mount != "true" && err != nil && strings.Contains(err.Error(), "No space left on device") {
		report.say(start, "packages", "the packages do not fit into memory; installing them on disk")
		if err = os.Remove(out); err == nil || errors.Is(err, fs.ErrNotExist) {
			err = mmdebstrap(ctx, work, "true", args, line)
		}
	}
	return err
}

// scratchMount is the shell line that puts mmdebstrap's scratch directory into
// memory, where there is plenty: it saves the writing and removing of
// everything that is unpacked. The mount ends with the namespace.
func scratchMount() string {
	const size = 4 << 30
	if available() < 2*size {
		return "true"
	}
	return fmt.Sprintf(`mount -t tmpfs -o size=%d,mode=0755 scratch "$TMPDIR"`, size)
}

// available is the host's free memory in bytes; 0: not known.
func available() int64 {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	var kib int64
	eachLine(string(raw), func(s string) {
		if f := strings.Fields(s); len(f) > 1 && f[0] == "MemAvailable:" {
			kib, _ = strconv.ParseInt(f[1], 10, 64)
		}
	})
	return kib << 10
}

func mmdebstrap(ctx context.Context, work, mount string, args []string, line func(string)) error {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return hearth.Wrap(hearth.FailedPrecondition, err, "mmdebstrap is missing; install it with: apt-get install mmdebstrap")
	}
	scratch := filepath.Join(work, "scratch")
	if err := os.MkdirAll(scratch, 0o755); err != nil {
		return err
	}
	return run(ctx, command{
		name: "bash", tool: "mmdebstrap", pkg: "bash", args: append([]string{"-c", mount + ` && exec mmdebstrap "$@"`, "mmdebstrap"}, args...), alone: ownNamespaces,
		env:  append(os.Environ(), "LC_ALL=C", "TMPDIR="+scratch, "DEBIAN_FRONTEND=noninteractive"),
		line: line,
	})
}

// Packages lists the Debian packages that were asked for, sorted.
func (d *Debian) Packages() []string { return slices.Clone(d.spec.Packages) }
