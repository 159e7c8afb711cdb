package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"hearth/internal/hearth"
)

// pip brings Python packages into a Debian root file system. The host's pip
// downloads them, so that its configuration (index, proxy, certificates) is
// used and none of it is seen inside; the root file system's own pip installs
// them without any network. Only wheels are taken: a source package would run
// its author's code on the host.
type pip struct {
	host    string // interpreter on the host whose pip downloads
	version string // of the guest's Python: "3.11"
	wheels  string // directory
}

func newPip(ctx context.Context, version, wheels string) (*pip, error) {
	p := &pip{version: version, wheels: wheels}
	for _, name := range []string{"python" + version, "python3", "/usr/bin/python3"} {
		v, err := output(ctx, name, "python3-pip", "-c", "import sys, pip; print('%d.%d' % sys.version_info[:2])")
		if err != nil {
			continue // it is not there or has no pip
		}
		if p.host == "" || strings.TrimSpace(v) == version {
			p.host = name
		}
		if strings.TrimSpace(v) == version { // the same version reads the same requirements
			return p, nil
		}
	}
	if p.host == "" {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "pip is missing; install it with: apt-get install python3-pip")
	}
	return p, nil
}

// platforms are the wheel tags that Debian 12's C library (2.36) can load.
func platforms() []string {
	machine := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH] // as the tags of wheels name it
	var list []string
	for minor := 36; minor >= 17; minor-- {
		list = append(list, fmt.Sprintf("manylinux_2_%d_%s", minor, machine))
	}
	list = append(list, "manylinux2014_"+machine)
	if machine == "x86_64" {
		list = append(list, "manylinux_2_12_x86_64", "manylinux2010_x86_64", "manylinux_2_5_x86_64", "manylinux1_x86_64")
	}
	return append(list, "linux_"+machine, "any")
}

// download fetches wheels of the packages and of all they need.
func (p *pip) download(ctx context.Context, packages []string, report Progress) error {
	const reportEvery = 20 // wheels
	start := time.Now()
	digits := strings.ReplaceAll(p.version, ".", "")
	args := []string{
		"-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--progress-bar", "off",
		"--dest", p.wheels, "--only-binary=:all:", "--python-version", p.version, "--implementation", "cp",
		"--abi", "cp" + digits, "--abi", "abi3", "--abi", "none",
	}
	for _, t := range platforms() {
		args = append(args, "--platform", t)
	}
	report.say(start, "python", "downloading %d Python packages and what they need", len(packages))
	var n int64
	err := run(ctx, command{
		name: p.host, tool: "pip", pkg: "python3-pip", args: append(append(args, "--"), packages...),
		line: func(s string) {
			if strings.HasPrefix(s, "Downloading ") || strings.HasPrefix(s, "Using cached ") {
				if n++; n%reportEvery == 0 {
					report.send(start, Event{Step: "python", Message: "downloading the Python packages", Done: n, Unit: "packages"})
				}
			}
		},
	})
	if err != nil {
		return err
	}
	report.send(start, Event{Step: "python", Message: "downloaded the Python packages", Done: n, Total: n, Unit: "packages"})
	return nil
}

// installScript runs as root in the root file system, with no network. Times
// are set before compiling because a .pyc file holds its source's.
const installScript = `set -e
python3 -m pip install --quiet --no-index --find-links "$1" --only-binary=:all: --no-compile --no-cache-dir \
  --disable-pip-version-check --no-warn-script-location --root-user-action=ignore --break-system-packages -- "${@:3}"
test -z "$2" || python3 -m pip uninstall --quiet --yes --break-system-packages --root-user-action=ignore -- $2
cd /usr/local/lib/python3*/dist-packages
for name in $2; do sed -i "/^Requires-Dist: $name\b/d" ./*.dist-info/METADATA; done
find . -type d \( -name tests -o -path './tornado/test' \) -prune -exec rm -rf {} +
find /usr/local -exec touch -h -d @1577836800 {} +
python3 -m compileall -q -j 0 . || true
find . -name __pycache__ -exec touch -d @1577836800 {} +
`

// enterRoot runs "$@" in the root file system "$0" as a root that can do little: files of
// a package run at every start of Python. It cannot mount, make devices, leave or set the host.
const enterRoot = `set -e; mount -t proc -o nosuid,nodev,noexec proc "$0/proc"; mount -o remount,bind,ro "$0/proc"; mount -t tmpfs none "$0/dev"; mkdir "$0/dev/shm"
for d in null zero urandom random; do touch "$0/dev/$d"; mount --bind "/dev/$d" "$0/dev/$d"; done
exec chroot "$0" setpriv --no-new-privs --inh-caps=-all --bounding-set=-all,+chown,+dac_override,+fowner,+fsetid -- "$@"`

// install installs what download fetched into the root file system at dir.
func (p *pip) install(ctx context.Context, dir string, spec DebianSpec, report Progress) error {
	start := time.Now()
	inside := filepath.Join(dir, "run", "hearth-wheels")
	if err := os.MkdirAll(filepath.Dir(inside), 0o755); err != nil {
		return err
	}
	if err := os.Rename(p.wheels, inside); err != nil { // the same file system: both are ours
		return err
	}
	report.say(start, "python", "installing the Python packages")
	args := []string{"-c", enterRoot, dir, "/bin/bash", "-c", installScript, "install", "/run/hearth-wheels", strings.Join(spec.Drop, " ")}
	err := run(ctx, command{
		name: "bash", tool: "pip", pkg: "bash", args: append(args, spec.Python...), alone: offline,
		env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"},
	})
	if err != nil {
		return err
	}
	if err := removeAll(inside); err != nil {
		return err
	}
	report.say(start, "python", "installed the Python packages")
	return nil
}
