// Package files is the file service of the guest daemon: the Connect service
// (stat, list, move, watch ...) and the REST endpoints that move bytes.
//
// Everything is done with the daemon's own rights, as the protocol wants it; what
// is created belongs to the user a request names. There is no border between
// the users of one sandbox here: whoever holds its token may name any of them. What must
// hold is that no path, file type or size makes the daemon hang, grow or fail: devices,
// pipes and sockets are refused, lists and queues are bounded, bodies are streamed.
//
// Uploads write in place: symbolic links are followed, inodes, hard links and
// watchers see what they would see from a shell's ">". The target is not touched
// before the first MiB, or all of a shorter body, has arrived; if an upload
// fails later, a file that it created is removed and one that existed is left with
// what had been written.
package files

import (
	"context"
	"errors"
	"net/http"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/process/account"
	"hearth/internal/hearth"
)

// Op is what a REST request does with a file; it is part of a signature.
type Op string

// The operations.
const (
	Read  Op = "read"
	Write Op = "write"
)

// Options are what a Service depends on.
type Options struct {
	// Session is what Init set; called once per request.
	Session func() account.Session
	// Guard decides whether a GET or POST of /files may go on: it checks token
	// or signature. Its error is a *hearth.Error of kind Unauthenticated.
	Guard func(r *http.Request, op Op) error
}

// Service implements the file service. Use New.
type Service struct {
	session func() account.Session
	guard   func(*http.Request, Op) error
	buffers sync.Pool // *[]byte of copyBuffer bytes
	users   account.Book

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	work sync.WaitGroup // watchers

	mu       sync.Mutex
	watchers map[string]*watcher
}

// copyBuffer is large because every read and write inside a sandbox is dear.
const copyBuffer = 1 << 20

// New returns a Service with no watchers.
func New(o Options) *Service {
	ctx, stop := context.WithCancel(context.Background())
	s := &Service{session: o.Session, guard: o.Guard, ctx: ctx, stop: stop, watchers: map[string]*watcher{}}
	s.buffers.New = func() any {
		b := make([]byte, copyBuffer)
		return &b
	}
	return s
}

// Close ends all watchers.
func (s *Service) Close() {
	s.stop()
	s.work.Wait()
}

// actor is who an RPC acts as.
func (s *Service) actor(h http.Header) (account.Account, account.Session, error) {
	ses := s.session()
	who, err := s.users.FromBasic(h.Get("Authorization"), ses.User)
	return who, ses, err
}

// locate resolves a path of an RPC.
func (s *Service) locate(h http.Header, path string) (string, account.Account, error) {
	who, ses, err := s.actor(h)
	if err != nil {
		return "", who, err
	}
	full, err := who.Resolve(path, ses.Workdir)
	return full, who, err
}

// classify gives an error of the file system its kind.
func classify(err error, what, path string) error {
	var kind hearth.Kind
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		kind = hearth.NotFound
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return hearth.Wrap(hearth.ResourceExhausted, err, "not enough disk space available")
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		kind = hearth.ResourceExhausted
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		kind = hearth.PermissionDenied
	case errors.Is(err, unix.EEXIST):
		kind = hearth.AlreadyExists
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EXDEV), errors.Is(err, unix.EBUSY):
		kind = hearth.FailedPrecondition
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EISDIR),
		errors.Is(err, unix.ENXIO), errors.Is(err, os.ErrInvalid):
		kind = hearth.InvalidArgument
	default:
		kind = hearth.Internal
	}
	return hearth.Wrap(kind, err, "%s %s", what, path)
}

// makeDirs creates dir and its missing parents, each owned by who. It reports
// nothing about a directory that is there already.
func makeDirs(dir string, who account.Account) error {
	var missing []string
	for d := dir; ; d = parent(d) {
		fi, err := os.Stat(d)
		if err == nil && !fi.IsDir() {
			return hearth.Errorf(hearth.InvalidArgument, "path is a file, not a directory: %s", d)
		}
		if err == nil || d == "/" {
			break
		}
		if errors.Is(err, unix.ENOTDIR) {
			continue // the file in the way is found further up
		}
		if !errors.Is(err, unix.ENOENT) {
			return classify(err, "cannot create directory", dir)
		}
		missing = append(missing, d)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		err := os.Mkdir(missing[i], 0o755)
		if errors.Is(err, unix.EEXIST) {
			if fi, serr := os.Stat(missing[i]); serr == nil && fi.IsDir() {
				continue
			}
		}
		if err != nil {
			return classify(err, "cannot create directory", missing[i])
		}
		if err := chown(missing[i], who); err != nil {
			return classify(err, "cannot change the owner of", missing[i])
		}
	}
	return nil
}

// chown gives path to who. A daemon that is not root keeps what it creates.
func chown(path string, who account.Account) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(path, int(who.UID), int(who.GID))
}
