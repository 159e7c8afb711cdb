// Package account knows who a request acts as inside a sandbox and what a path
// in it means: the Unix user, the session's defaults, and the one function that
// resolves paths for every service of the guest daemon.
package account

import (
	"encoding/base64"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"hearth/internal/hearth"
)

// Session is what the host set at Init for all later requests.
type Session struct {
	User    string            // default user
	Workdir string            // default directory; empty: the user's home
	Env     map[string]string // variables of every process
}

// Account is a Unix user of the sandbox.
type Account struct {
	Name   string
	Home   string
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary groups, GID included
}

// maxName bounds a user name in a request, in bytes.
const maxName = 256

// Lookup finds the user called name in the sandbox's own user database.
func Lookup(name string) (Account, error) {
	if name == "" || len(name) > maxName || strings.ContainsAny(name, "\x00\n:") {
		return Account{}, hearth.Errorf(hearth.Unauthenticated, "invalid username: '%s'", clip(name))
	}
	u, err := user.Lookup(name)
	if err != nil {
		return Account{}, hearth.Wrap(hearth.Unauthenticated, err, "invalid username: '%s'", name)
	}
	return fromUser(u)
}

func clip(name string) string {
	if len(name) > maxName {
		name = name[:maxName]
	}
	return strings.ToValidUTF8(name, "?")
}

func fromUser(u *user.User) (Account, error) {
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return Account{}, hearth.Wrap(hearth.Unauthenticated, err, "user '%s' has no usable id", u.Username)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return Account{}, hearth.Wrap(hearth.Unauthenticated, err, "user '%s' has no usable group id", u.Username)
	}
	a := Account{Name: u.Username, Home: u.HomeDir, UID: uint32(uid), GID: uint32(gid)}
	if !filepath.IsAbs(a.Home) {
		a.Home = "/"
	}
	a.Groups = []uint32{a.GID}
	ids, err := u.GroupIds()
	if err != nil { // no readable group database: the primary group must do
		return a, nil
	}
	for _, id := range ids {
		g, err := strconv.ParseUint(id, 10, 32)
		if err == nil && uint32(g) != a.GID {
			a.Groups = append(a.Groups, uint32(g))
		}
	}
	return a, nil
}

// basicUser takes the user name out of an Authorization header.
func basicUser(header string) (string, bool) {
	scheme, rest, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "basic") {
		return "", false
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(rest))
	if err != nil {
		return "", false
	}
	name, _, ok := strings.Cut(string(raw), ":")
	return name, ok
}

// maxPath is Linux's PATH_MAX without its final NUL.
const maxPath = 4095

// Resolve turns the path of a request into an absolute, clean one: empty is the
// session's directory, "~" and relative paths start at the user's home,
// absolute ones stay. Symbolic links are not looked at.
func (a Account) Resolve(path, workdir string) (string, error) {
	switch {
	case len(path) > maxPath:
		return "", hearth.Errorf(hearth.InvalidArgument, "path is longer than %d bytes", maxPath)
	case strings.IndexByte(path, 0) >= 0:
		return "", hearth.Errorf(hearth.InvalidArgument, "path contains a NUL byte")
	case path == "":
		return a.dir(workdir), nil
	case path == "~":
		return filepath.Clean(a.Home), nil
	case strings.HasPrefix(path, "~/"):
		return filepath.Join(a.Home, path[2:]), nil
	case path[0] == '~':
		return "", hearth.Errorf(hearth.InvalidArgument, "cannot expand user-specific home dir")
	case path[0] == '/':
		return filepath.Clean(path), nil
	}
	return filepath.Join(a.Home, path), nil
}

// dir is where an empty path leads.
func (a Account) dir(workdir string) string {
	switch {
	case workdir == "":
		return filepath.Clean(a.Home)
	case filepath.IsAbs(workdir):
		return filepath.Clean(workdir)
	}
	return filepath.Join(a.Home, workdir)
}
