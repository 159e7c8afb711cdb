package drivertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// guestPython is where testguest finds Python; the image with it is mounted at /.guest.
const guestPython = "/.guest/python"

// listPython prints what of Python a program needs that draws random numbers.
const listPython = `
import json, secrets, sys, uuid
mapped = {l.split()[-1] for l in open("/proc/self/maps") if "/" in l and l.split()[1].startswith("r-x")}
modules = {m.__file__: getattr(m, "__cached__", None) or m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)}
json.dump({"exe": sys.executable, "mapped": sorted(mapped), "modules": modules}, sys.stdout)
`

// copyPython copies into dir, which becomes /.guest/python of the machines, what the
// host's Python needs to draw uuid4 and secrets, so that there is a program whose
// state a restore copies. A host without Python has nothing to copy: that is
// fs.ErrNotExist, and testguest then draws without.
func copyPython(ctx context.Context, dir string) error {
	raw, err := exec.CommandContext(ctx, "python3", "-S", "-c", listPython).Output()
	if err != nil {
		return fmt.Errorf("%w: python3: %w", fs.ErrNotExist, err)
	}
	var has struct {
		Exe     string
		Mapped  []string          // program, loader, libraries
		Modules map[string]string // sources, and what was compiled of them
	}
	if err := json.Unmarshal(raw, &has); err != nil {
		return err
	}
	exe, err := filepath.EvalSymlinks(has.Exe)
	if err != nil {
		return err
	}
	files := map[string]string{exe: exe}
	loader, libraries := "", map[string]bool{}
	for _, file := range has.Mapped {
		libraries[guestPython+filepath.Dir(file)] = true
		if strings.HasPrefix(filepath.Base(file), "ld-") {
			loader = guestPython + file
		}
		files[file], files[soname(file)] = file, file
	}
	if loader == "" {
		return errors.New("python3 has no loader")
	}
	for source, compiled := range has.Modules {
		if _, err := os.Stat(compiled); err == nil && strings.HasSuffix(compiled, ".pyc") {
			files[source+"c"] = compiled // to compile it again would take an emulated guest long
		} else {
			files[source] = source
		}
	}
	for to, from := range files {
		if err := copyFile(filepath.Join(dir, to), from); err != nil {
			return err
		}
	}
	paths := strings.Join(slices.Sorted(maps.Keys(libraries)), ":")
	argv := []string{loader, "--library-path", paths, guestPython + exe, "-S"}
	return os.WriteFile(filepath.Join(dir, "argv"), []byte(strings.Join(argv, "\n")), 0o644)
}

// soname is the name by which programs want a library: libz.so.1 for libz.so.1.2.13.
func soname(path string) string {
	stem, version, ok := strings.Cut(path, ".so.")
	if !ok {
		return path
	}
	major, _, _ := strings.Cut(version, ".")
	return stem + ".so." + major
}

func copyFile(to, from string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, raw, 0o755)
}
