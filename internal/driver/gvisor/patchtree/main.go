// Command patchtree prepares the gVisor that the build links: a copy of the
// module version that go.mod pins, with the patches of
// internal/driver/gvisor/patch applied, below .cache/gvisor. Run it from the top
// of the tree; it prints the flags with which the go command uses the copy, and
// does nothing when the copy is there.
//
// Below .cache/gvisor, KEY/ is a whole patched module, named by its version and
// the digest of the patches, and KEY.mod and KEY.sum are this module's go.mod
// and go.sum with a replace directive for it. The directive is relative, so that
// no binary holds a path of this machine.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const (
	module  = "gvisor.dev/gvisor"
	patches = "internal/driver/gvisor/patch"
	cache   = ".cache/gvisor"
	tag     = "hearthcow" // of the files that need the patched module
)

func main() {
	flags, err := prepare()
	if err != nil {
		fmt.Fprintln(os.Stderr, "patchtree:", err)
		os.Exit(1)
	}
	fmt.Println(flags)
}

func prepare() (flags string, err error) {
	source, err := pinned()
	if err != nil {
		return "", err
	}
	list, digest, err := readPatches(patches)
	if err != nil {
		return "", err
	}
	key := source.Version + "+" + digest
	tree := filepath.Join(cache, key)
	if _, err := os.Stat(tree); errors.Is(err, fs.ErrNotExist) {
		if err := makeTree(source.Dir, tree, list); err != nil {
			return "", err
		}
		dropOthers(key)
	} else if err != nil {
		return "", err
	}
	if err := writeModfile(tree); err != nil {
		return "", err
	}
	top, err := os.Getwd()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("-modfile=%s.mod -tags=%s", filepath.Join(top, tree), tag), nil
}

// download is what `go mod download -json` says of a module.
type download struct{ Version, Dir, Error string }

// pinned returns the stock module, which the go command has verified against
// go.sum when it downloaded it.
func pinned() (download, error) {
	var d download
	cmd := exec.Command("go", "mod", "download", "-json", module)
	cmd.Env = append(os.Environ(), "GOFLAGS=") // the flags that this prints may be set
	out, err := cmd.Output()
	if jsonErr := json.Unmarshal(out, &d); jsonErr != nil || d.Dir == "" {
		return d, fmt.Errorf("%s cannot be had: %w", module, errors.Join(err, errors.New(d.Error)))
	}
	return d, err
}

// readPatches returns the patches in the order of their names.
func readPatches(dir string) (list []filePatch, digest string, err error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil {
		return nil, "", err
	}
	if len(names) == 0 {
		return nil, "", fmt.Errorf("no patches in %s: run this from the top of the tree", dir)
	}
	slices.Sort(names)
	sum := sha256.New()
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, "", err
		}
		sum.Write(text)
		files, err := parse(string(text))
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", filepath.Base(name), err)
		}
		list = append(list, files...)
	}
	return list, hex.EncodeToString(sum.Sum(nil))[:16], nil
}

// makeTree makes tree whole or not at all.
func makeTree(source, tree string, list []filePatch) (err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(cache, "new-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := copyTree(source, tmp); err != nil {
		return err
	}
	for _, p := range list {
		if err := p.apply(tmp); err != nil {
			return fmt.Errorf("the patches do not fit the pinned gVisor: %w", err)
		}
	}
	err = os.Rename(tmp, tree)
	if errors.Is(err, fs.ErrExist) {
		return nil // another build was faster
	}
	return err
}

// copyTree copies a module, which the module cache keeps read-only.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		dest := filepath.Join(to, rel)
		switch {
		case e.IsDir():
			return os.MkdirAll(dest, 0o755)
		case !e.Type().IsRegular():
			return fmt.Errorf("%s is no regular file", rel)
		}
		return copyFile(path, dest)
	})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// dropOthers removes the copies of earlier versions and patches.
func dropOthers(key string) {
	entries, err := os.ReadDir(cache)
	if err != nil {
		return // they cost room, no more
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), key) && !strings.HasPrefix(e.Name(), "new-") {
			_ = os.RemoveAll(filepath.Join(cache, e.Name()))
		}
	}
}

// writeModfile writes tree.mod and tree.sum, when they are not there as they
// should be: the go command looks at their times.
func writeModfile(tree string) error {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		return err
	}
	sum, err := os.ReadFile("go.sum")
	if err != nil {
		return err
	}
	mod = fmt.Appendf(mod, "\nreplace %s => ./%s\n", module, tree)
	return errors.Join(replaceFile(tree+".mod", mod), replaceFile(tree+".sum", sum))
}

func replaceFile(name string, content []byte) error {
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, content) {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), "new-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(content)
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}
