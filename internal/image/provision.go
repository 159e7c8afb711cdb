package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"hearth/internal/hearth"
)

const (
	userName = "user" // of every sandbox; clients expect it, its home and its password-free sudo
	userUID  = 1000
	maxEtc   = 1 << 20 // bytes of a file in /etc that provision reads
)

// provision adds what every sandbox must hold, whatever it was made from: the
// user, the mount points, a python for whoever has a python3, and a /usr/local
// that the user may install into. It runs nothing of the tree.
func provision(root *os.Root) error {
	if !exists(root, "bin/bash") && !exists(root, "usr/bin/bash") {
		return hearth.Errorf(hearth.FailedPrecondition, "the root file system has no /bin/bash, in which every command runs; install bash in it")
	}
	for _, d := range []struct {
		name string
		mode fs.FileMode
	}{
		{"dev", 0o755}, {"proc", 0o555}, {"sys", 0o555}, {"run", 0o755}, {"root", 0o700}, {"home", 0o755}, {"etc", 0o755},
		{"tmp", 0o777 | fs.ModeSticky}, {"var/tmp", 0o777 | fs.ModeSticky}, {"code", 0o777}, {".guest", 0o755}, {"usr/local", 0o755},
	} {
		if err := ensureDir(root, d.name, d.mode); err != nil {
			return err
		}
	}
	uid, gid, err := ensureUser(root)
	if err != nil {
		return err
	}
	if err := sudoers(root); err != nil {
		return err
	}
	// The guest daemon writes both when it knows its name and its servers.
	hosts := "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
	if err := errors.Join(replaceFile(root, "etc/hosts", hosts, 0o644), replaceFile(root, "etc/resolv.conf", "", 0o644)); err != nil {
		return err
	}
	if err := python(root); err != nil {
		return err
	}
	return own(root, "usr/local", uid, gid)
}

// exists reports whether anything has the name, be it a symbolic link that leads nowhere.
func exists(root *os.Root, name string) bool {
	_, err := root.Lstat(name)
	return err == nil
}

// ensureDir makes a directory, or what stands in its way into one. A symbolic
// link stays: /var/run and the like are links in some systems.
func ensureDir(root *os.Root, name string, mode fs.FileMode) error {
	fi, err := root.Lstat(name)
	if err == nil && (fi.IsDir() || fi.Mode()&fs.ModeSymlink != 0) {
		return nil
	}
	if err == nil {
		return hearth.Errorf(hearth.InvalidArgument, "the root file system's /%s is not a directory", name)
	}
	if err := root.MkdirAll(name, 0o755); err != nil {
		return err
	}
	return root.Chmod(name, mode)
}

// replaceFile writes a regular file, whatever was there.
func replaceFile(root *os.Root, name, content string, mode fs.FileMode) error {
	if err := root.RemoveAll(name); err != nil {
		return err
	}
	if err := root.WriteFile(name, []byte(content), mode); err != nil {
		return err
	}
	return root.Chmod(name, mode)
}

// table is one of passwd, group, shadow: lines of fields between colons.
type table struct {
	name string
	mode fs.FileMode
	text string
}

func readTable(root *os.Root, name string, mode fs.FileMode) (*table, error) {
	t := &table{name: name, mode: mode}
	fi, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxEtc {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the root file system's /%s is not a regular file of at most %d bytes", name, maxEtc)
	}
	raw, err := root.ReadFile(name)
	t.text, t.mode = string(raw), fi.Mode().Perm()
	return t, err
}

// find returns the fields of the line whose field i is v.
func (t *table) find(i int, v string) []string {
	for l := range strings.Lines(t.text) {
		if f := strings.Split(strings.TrimSpace(l), ":"); len(f) > i && f[i] == v {
			return f
		}
	}
	return nil
}

func (t *table) add(root *os.Root, line string) error {
	if t.text != "" && !strings.HasSuffix(t.text, "\n") {
		t.text += "\n"
	}
	t.text += line + "\n"
	return replaceFile(root, t.name, t.text, t.mode)
}

// ensureUser adds the user unless there is one, with the uid 1000 or, if that
// is taken, the next free one.
func ensureUser(root *os.Root) (uid, gid int, err error) {
	passwd, err := readTable(root, "etc/passwd", 0o644)
	if err != nil {
		return 0, 0, err
	}
	if f := passwd.find(0, userName); len(f) >= 4 {
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		if err1 != nil || err2 != nil || uid < 0 || gid < 0 {
			return 0, 0, hearth.Errorf(hearth.InvalidArgument, "the root file system's /etc/passwd has no valid ids for %q", userName)
		}
		return uid, gid, nil
	}
	id, err := addUser(root, passwd)
	if err != nil {
		return 0, 0, err
	}
	home := "home/" + userName
	if err := ensureDir(root, home, 0o755); err != nil {
		return 0, 0, err
	}
	if err := skeleton(root, home); err != nil {
		return 0, 0, err
	}
	return id, id, own(root, home, id, id)
}

// addUser writes the user's lines and returns the id of user and group.
func addUser(root *os.Root, passwd *table) (int, error) {
	group, err := readTable(root, "etc/group", 0o644)
	if err != nil {
		return 0, err
	}
	shadow, err := readTable(root, "etc/shadow", 0o640)
	if err != nil {
		return 0, err
	}
	id := userUID
	for passwd.find(2, strconv.Itoa(id)) != nil || group.find(2, strconv.Itoa(id)) != nil {
		id++
	}
	if passwd.find(0, "root") == nil {
		err = passwd.add(root, "root:x:0:0:root:/root:/bin/bash")
	}
	err = errors.Join(err,
		passwd.add(root, fmt.Sprintf("%s:x:%d:%d::/home/%s:/bin/bash", userName, id, id, userName)),
		shadow.add(root, userName+":!:19000:0:99999:7:::"))
	if group.find(0, userName) == nil {
		err = errors.Join(err, group.add(root, fmt.Sprintf("%s:x:%d:", userName, id)))
	}
	return id, err
}

// skeleton copies the regular files of /etc/skel.
func skeleton(root *os.Root, home string) error {
	list, err := fs.ReadDir(root.FS(), "etc/skel")
	if err != nil {
		return nil // there is none
	}
	for _, e := range list {
		fi, err := e.Info()
		if err != nil || !fi.Mode().IsRegular() || fi.Size() > maxEtc || exists(root, path.Join(home, e.Name())) {
			continue
		}
		raw, err := root.ReadFile(path.Join("etc/skel", e.Name()))
		if err != nil {
			return err
		}
		if err := root.WriteFile(path.Join(home, e.Name()), raw, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// sudoers lets the user become root without a password, where there is a sudo.
func sudoers(root *os.Root) error {
	if !exists(root, "usr/bin/sudo") && !exists(root, "bin/sudo") {
		return nil
	}
	if err := ensureDir(root, "etc/sudoers.d", 0o750); err != nil {
		return err
	}
	return replaceFile(root, "etc/sudoers.d/90-hearth", userName+" ALL=(ALL:ALL) NOPASSWD: ALL\n", 0o440)
}

// python gives a system with python3 a python, and lets pip install for
// everybody: what a distribution forbids to protect a long-lived machine is
// what a sandbox is for.
func python(root *os.Root) error {
	if exists(root, "usr/bin/python3") && !exists(root, "usr/bin/python") && !exists(root, "usr/local/bin/python") {
		if err := root.Symlink("python3", "usr/bin/python"); err != nil {
			return err
		}
	}
	list, err := fs.Glob(root.FS(), "usr/lib/python3*/EXTERNALLY-MANAGED")
	if err != nil {
		return err
	}
	for _, name := range list {
		if err := root.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// own gives a tree to the user. Symbolic links are not followed.
func own(root *os.Root, dir string, uid, gid int) error {
	return fs.WalkDir(root.FS(), dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return root.Lchown(name, uid, gid)
	})
}
