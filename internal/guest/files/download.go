package files

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/process/account"
	"hearth/internal/hearth"
)

// target checks a REST request and resolves what it names.
func (s *Service) target(r *http.Request, op Op) (account.Account, account.Session, error) {
	if err := s.guard(r, op); err != nil {
		return account.Account{}, account.Session{}, err
	}
	ses := s.session()
	who, err := s.named(r.URL.Query().Get("username"), ses)
	return who, ses, err
}

// named is the account that a REST request acts as.
func (s *Service) named(username string, ses account.Session) (account.Account, error) {
	if username == "" {
		username = ses.User
	}
	who, err := s.users.Lookup(username)
	if err != nil {
		return who, hearth.Errorf(hearth.Unauthenticated, "error looking up user '%s': unknown user", username)
	}
	return who, nil
}

// Download answers GET and HEAD of /files.
func (s *Service) Download(w http.ResponseWriter, r *http.Request) {
	who, ses, err := s.target(r, Read)
	if err != nil {
		fail(w, err)
		return
	}
	path, err := who.Resolve(r.URL.Query().Get("path"), ses.Workdir)
	if err != nil {
		fail(w, err)
		return
	}
	f, fi, err := openRegular(path)
	if err != nil {
		fail(w, err)
		return
	}
	defer f.Close()
	zip, err := wantsGzip(r.Header)
	if err != nil {
		fail(w, err)
		return
	}
	h := w.Header()
	h.Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": valid(filepath.Base(path))}))
	h.Set("Vary", "Accept-Encoding")
	switch {
	case zip:
		s.sendGzip(w, r, f)
	case fi.Size() == 0:
		s.sendUnsized(w, r, f)
	default:
		http.ServeContent(&sender{ResponseWriter: w, pool: s}, r, fi.Name(), fi.ModTime(), f)
	}
}

// openRegular opens a plain file; a pipe, device or socket neither blocks nor is read.
func openRegular(path string) (*os.File, os.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return nil, nil, hearth.Errorf(hearth.NotFound, "path '%s' does not exist", path)
		}
		return nil, nil, classify(err, "cannot open", path)
	}
	fi, err := f.Stat()
	switch {
	case err != nil:
		err = classify(err, "cannot stat", path)
	case fi.IsDir():
		err = hearth.Errorf(hearth.InvalidArgument, "path '%s' is a directory", path)
	case !fi.Mode().IsRegular():
		err = hearth.Errorf(hearth.InvalidArgument, "path '%s' is not a regular file", path)
	default:
		return f, fi, nil
	}
	_ = f.Close()
	return nil, nil, err
}

// sender copies with large buffers: what io.Copy and sendfile do in small
// pieces costs a system call each, which inside a sandbox is dear.
type sender struct {
	http.ResponseWriter
	pool *Service
}

// ReadFrom implements io.ReaderFrom for io.Copy.
func (s *sender) ReadFrom(src io.Reader) (int64, error) {
	return s.pool.copy(s.ResponseWriter, src)
}

// plainWriter hides all but Write, so that io.CopyBuffer uses its buffer.
type plainWriter struct{ io.Writer }

// plainReader does the same for a source.
type plainReader struct{ io.Reader }

func (s *Service) copy(dst io.Writer, src io.Reader) (int64, error) {
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	return io.CopyBuffer(plainWriter{dst}, plainReader{src}, *buf)
}

// sendGzip compresses on the way. Ranges do not apply to what is made on the fly.
func (s *Service) sendGzip(w http.ResponseWriter, r *http.Request, f *os.File) {
	h := w.Header()
	ctype := mime.TypeByExtension(filepath.Ext(f.Name()))
	if ctype == "" {
		ctype = "application/octet-stream"
	}
	h.Set("Content-Type", ctype)
	h.Set("Content-Encoding", "gzip")
	if r.Method == http.MethodHead {
		return
	}
	zw, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		fail(w, err)
		return
	}
	if _, err := s.copy(zw, f); err == nil {
		_ = zw.Close()
	}
}

// sendUnsized sends a file whose size reads as zero: an empty one, with a
// length, or one of /proc's, which has content all the same.
func (s *Service) sendUnsized(w http.ResponseWriter, r *http.Request, f *os.File) {
	head := make([]byte, 512)
	n, err := io.ReadFull(f, head)
	if n == 0 {
		if err != nil && !errors.Is(err, io.EOF) {
			fail(w, classify(err, "cannot read", f.Name()))
			return
		}
		fi, _ := f.Stat()
		http.ServeContent(w, r, f.Name(), fi.ModTime(), bytes.NewReader(nil))
		return
	}
	w.Header().Set("Content-Type", http.DetectContentType(head[:n]))
	if r.Method == http.MethodHead {
		return
	}
	_, _ = s.copy(w, io.MultiReader(bytes.NewReader(head[:n]), f))
}

// wantsGzip reads Accept-Encoding. Clients that name gzip alone want it; the
// lists that HTTP libraries send by themselves get plain bytes, which are faster
// between neighbours. A request for part of a file is never compressed.
func wantsGzip(h http.Header) (bool, error) {
	accepted := map[string]float64{}
	others := false
	for item := range strings.SplitSeq(strings.Join(h.Values("Accept-Encoding"), ","), ",") {
		coding, q := quality(item)
		accepted[coding] = q
		others = others || q > 0 && !slices.Contains([]string{"", "*", "gzip", "identity"}, coding)
	}
	acceptable := func(coding string, otherwise bool) bool {
		if q, ok := accepted[coding]; ok {
			return q > 0
		}
		if q, ok := accepted["*"]; ok {
			return q > 0
		}
		return otherwise
	}
	_, named := accepted["gzip"]
	gzipOK, identityOK := acceptable("gzip", false), acceptable("identity", true)
	partial := h.Get("Range") != "" || h.Get("If-Range") != ""
	switch {
	case !identityOK && !gzipOK:
		return false, &statusError{http.StatusNotAcceptable, "no acceptable encoding: gzip and identity are supported"}
	case !identityOK:
		return true, nil
	}
	return named && gzipOK && !others && !partial, nil
}

// quality splits "gzip;q=0.5".
func quality(item string) (string, float64) {
	coding, params, _ := strings.Cut(item, ";")
	q := 1.0
	for p := range strings.SplitSeq(params, ";") {
		if v, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(p)), "q="); ok {
			if f, err := strconv.ParseFloat(v, 64); err == nil {
				q = f
			}
		}
	}
	return strings.ToLower(strings.TrimSpace(coding)), q
}
