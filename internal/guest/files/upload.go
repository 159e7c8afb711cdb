package files

import (
	"bufio"
	"compress/gzip"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/process/account"
	"hearth/internal/hearth"
)

// maxParts bounds the files of one multipart request.
const maxParts = 10_000

// written is one element of the answer to an upload.
type written struct {
	Name     string            `json:"name"`
	Path     string            `json:"path"`
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// upload is one request that writes files.
type upload struct {
	svc  *Service
	who  account.Account
	ses  account.Session
	meta map[string]string
	path string // of the query; empty: the parts name theirs
	done []written
}

// Upload answers POST of /files.
func (s *Service) Upload(w http.ResponseWriter, r *http.Request) {
	who, ses, err := s.target(r, Write)
	if err == nil {
		u := &upload{svc: s, who: who, ses: ses, path: r.URL.Query().Get("path"), done: []written{}}
		if err = u.receive(r); err == nil {
			writeJSON(w, u.done)
			return
		}
	}
	fail(w, err)
}

func (u *upload) receive(r *http.Request) (err error) {
	if u.meta, err = parseMetadata(r.Header); err != nil {
		return err
	}
	body, err := decoded(r)
	if err != nil {
		return err
	}
	ctype, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return hearth.Errorf(hearth.InvalidArgument, "Content-Type is missing or malformed: multipart/form-data or application/octet-stream is needed")
	}
	switch ctype {
	case "multipart/form-data":
		if params["boundary"] == "" {
			return hearth.Errorf(hearth.InvalidArgument, "Content-Type: multipart/form-data has no boundary")
		}
		return u.multipart(multipart.NewReader(bufio.NewReaderSize(body, copyBuffer), params["boundary"]))
	case "application/octet-stream":
		if u.path == "" {
			return hearth.Errorf(hearth.InvalidArgument, "path: the query parameter is needed with application/octet-stream")
		}
		return u.file(u.path, body)
	}
	return hearth.Errorf(hearth.InvalidArgument, "Content-Type '%s' is not supported: multipart/form-data or application/octet-stream is needed", ctype)
}

// decoded is the body without its Content-Encoding.
func decoded(r *http.Request) (io.Reader, error) {
	switch enc := r.Header.Get("Content-Encoding"); enc {
	case "", "identity":
		return r.Body, nil
	case "gzip":
		zr, err := gzip.NewReader(bufio.NewReaderSize(r.Body, 64<<10))
		if err != nil {
			return nil, hearth.Wrap(hearth.InvalidArgument, err, "Content-Encoding: the body is not gzip")
		}
		return zr, nil
	default:
		return nil, hearth.Errorf(hearth.InvalidArgument, "Content-Encoding '%s' is not supported: gzip or none is needed", enc)
	}
}

// multipart writes every part that is called "file".
func (u *upload) multipart(parts *multipart.Reader) error {
	seen := map[string]bool{}
	for range maxParts {
		part, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return hearth.Wrap(hearth.InvalidArgument, err, "the multipart body is malformed or incomplete")
		}
		field, filename := disposition(part)
		if field != "file" {
			continue
		}
		path := u.path
		if path == "" {
			path = filename
		}
		if path == "" {
			return hearth.Errorf(hearth.InvalidArgument, "a part has no filename, and there is no query parameter path")
		}
		full, err := u.who.Resolve(path, u.ses.Workdir)
		if err != nil {
			return err
		}
		if seen[full] {
			return hearth.Errorf(hearth.InvalidArgument, "you cannot upload multiple files to the same path '%s'", full)
		}
		seen[full] = true
		if err := u.file(path, part); err != nil {
			return err
		}
	}
	return hearth.Errorf(hearth.InvalidArgument, "more than %d parts", maxParts)
}

// disposition is a part's field name and its file name with all directories,
// which the standard library's FileName would strip.
func disposition(part *multipart.Part) (field, filename string) {
	_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
	if err != nil {
		return "", ""
	}
	return params["name"], params["filename"]
}

// file writes one file and notes it in the answer.
func (u *upload) file(path string, src io.Reader) error {
	full, err := u.who.Resolve(path, u.ses.Workdir)
	if err != nil {
		return err
	}
	if err := u.svc.store(full, u.who, src, u.meta); err != nil {
		return err
	}
	u.done = append(u.done, written{Name: filepath.Base(full), Path: full, Type: "file", Metadata: u.meta})
	return nil
}

// store writes src to the file path and gives it to who. The package comment
// says what is left behind when it fails.
func (s *Service) store(path string, who account.Account, src io.Reader, meta map[string]string) error {
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	src = tagged{src}
	n, err := io.ReadFull(src, *buf)
	whole := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if err != nil && !whole {
		return broken(err)
	}
	if err := makeDirs(parent(path), who); err != nil {
		return err
	}
	f, created, err := create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err = own(f, who, meta); err == nil {
		_, err = f.Write((*buf)[:n])
	}
	if err == nil && !whole {
		_, err = io.CopyBuffer(plainWriter{f}, src, *buf)
	}
	if err == nil {
		return nil
	}
	if created {
		removeSame(path, f)
	}
	if _, ok := errors.AsType[*readError](err); ok {
		return broken(err)
	}
	return classify(err, "cannot write", path)
}

// broken is the answer to a source that failed.
func broken(err error) error {
	if re, ok := errors.AsType[*readError](err); ok {
		err = re.err
	}
	if _, ok := errors.AsType[*hearth.Error](err); ok {
		return err
	}
	return hearth.Wrap(hearth.InvalidArgument, err, "the body is malformed or incomplete")
}

// readError marks a failure of the source, as opposed to one of the file. It
// hides an io.ErrUnexpectedEOF of the source, which would look like a short read.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }

// tagged wraps the errors of a source in readError.
type tagged struct{ io.Reader }

// Read implements io.Reader.
func (t tagged) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = &readError{err}
	}
	return n, err
}

// create opens path for writing and says whether it was not there before. What
// is not a plain file is refused without blocking on it.
func create(path string) (f *os.File, created bool, err error) {
	const flags = os.O_WRONLY | unix.O_NONBLOCK
	f, err = os.OpenFile(path, flags|os.O_CREATE|os.O_EXCL, 0o666)
	if err == nil {
		return f, true, nil
	}
	if errors.Is(err, unix.EEXIST) {
		f, err = os.OpenFile(path, flags|os.O_CREATE, 0o666) // creates the target of a dangling link
	}
	if err != nil {
		if errors.Is(err, unix.EISDIR) {
			return nil, false, hearth.Errorf(hearth.InvalidArgument, "path is a directory: %s", path)
		}
		return nil, false, classify(err, "cannot open", path)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = hearth.Errorf(hearth.InvalidArgument, "path is not a regular file: %s", path)
	}
	if err != nil {
		_ = f.Close()
		return nil, false, err
	}
	return f, false, nil
}

// own empties the file and makes it the user's.
func own(f *os.File, who account.Account, meta map[string]string) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := f.Chown(int(who.UID), int(who.GID)); err != nil {
			return err
		}
	}
	return setMetadata(f, meta)
}

// removeSame unlinks path if it still is the file f.
func removeSame(path string, f *os.File) {
	mine, err := f.Stat()
	if err != nil {
		return
	}
	if there, err := os.Lstat(path); err == nil && os.SameFile(mine, there) {
		_ = os.Remove(path)
	}
}
