// Package program is about what launchers execute, and so sandboxes: a program that is open
// here, or else this one, which does the same.
package program

import (
	"debug/buildinfo"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"hearth/internal/hearth"
)

// self is this program, whatever has become of its file.
const self = "/proc/self/exe"

// Program is a program that others execute.
type Program struct {
	get func() (*os.File, error)
	log *slog.Logger

	once sync.Once
	path string
	file *os.File // kept open for as long as path is used
}

// New returns the program at path, or if that is empty the one that get returns when it is first
// asked for. This very program takes its place if get is nil, fails, or returns one that was
// built from other sources or cannot be executed; the log says why.
func New(path string, get func() (*os.File, error), log *slog.Logger) *Program {
	return &Program{path: path, get: get, log: log}
}

// Path is where it is, which is not another's while p is there.
func (p *Program) Path() string {
	p.once.Do(func() {
		if p.path == "" {
			p.path = p.choose()
		}
	})
	return p.path
}

func (p *Program) choose() string {
	if p.get == nil {
		return self
	}
	file, err := p.get()
	if err == nil {
		var path string
		if path, err = usable(file); err == nil {
			p.file = file
			return path
		}
		_ = file.Close()
	}
	p.log.Warn("sandboxes execute all of this program instead of the one for them", "err", err)
	return self
}

// usable returns the path by which others execute a file that is open here, after it has
// been: a host may forbid that for what is mounted nowhere.
func usable(file *os.File) (string, error) {
	if err := sameSources(file); err != nil {
		return "", err
	}
	pid, err := os.Readlink("/proc/self") // as /proc has it, of which another namespace's may be mounted here
	if err != nil {
		return "", err
	}
	path := fmt.Sprintf("/proc/%s/fd/%d", pid, file.Fd())
	here, err := file.Stat()
	if err != nil {
		return "", err
	}
	if there, err := os.Stat(path); err != nil || !os.SameFile(here, there) {
		return "", hearth.Errorf(hearth.FailedPrecondition, "%s is another file than descriptor %d", path, file.Fd())
	}
	cmd := exec.Command(path)
	cmd.Env = []string{}
	if err := cmd.Run(); err != nil {
		if e, ended := errors.AsType[*exec.ExitError](err); !ended || !e.Exited() { // it says how it is used, and fails
			return "", err
		}
	}
	return path, nil
}

// sameSources fails when a program says that it was built from other sources than this one: of
// another commit, or with another gVisor or other patches of it. Tests say neither of themselves.
func sameSources(file *os.File) error {
	theirs, err := buildinfo.Read(file)
	if err != nil {
		return err
	}
	ours, ok := debug.ReadBuildInfo()
	if !ok {
		return hearth.Errorf(hearth.FailedPrecondition, "this program does not say what it was built from")
	}
	if a, b := linked(ours), linked(theirs); a != b && a != "" && b != "" {
		return hearth.Errorf(hearth.FailedPrecondition, `the program of sandboxes has gVisor %s, this one %s; run "make build"`, b, a)
	}
	if a, b := commit(ours), commit(theirs); a != b && a != "" && b != "" {
		return hearth.Errorf(hearth.FailedPrecondition, `the program of sandboxes is of commit %s, this one of %s; run "make build"`, b, a)
	}
	return nil
}

// Linked is the gVisor in a build; the zero module when there is none, or, as in a test, the build
// does not say.
func Linked(info *debug.BuildInfo) debug.Module {
	i := slices.IndexFunc(info.Deps, func(m *debug.Module) bool { return m.Path == "gvisor.dev/gvisor" })
	if i < 0 {
		return debug.Module{}
	}
	return *info.Deps[i]
}

// linked names it: the version, and the directory of a patched one, whose name has a hash
// of the patches.
func linked(info *debug.BuildInfo) string {
	m := Linked(info)
	if m.Replace != nil {
		return m.Version + " in " + filepath.Base(m.Replace.Path)
	}
	return m.Version
}

// commit is what a build says of its sources, empty for a test.
func commit(info *debug.BuildInfo) (text string) {
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" || s.Key == "vcs.modified" {
			text += s.Value + " "
		}
	}
	return strings.TrimSpace(text)
}
