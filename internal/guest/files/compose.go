package files

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"hearth/internal/guest/process/account"
	"hearth/internal/hearth"
)

const (
	maxComposeBody = 1 << 20 // bytes of the JSON
	maxSources     = 10_000
)

// composeRequest is the JSON body of POST /files/compose.
type composeRequest struct {
	Sources     []string `json:"source_paths"`
	Destination string   `json:"destination"`
	Username    string   `json:"username"`
}

// Compose answers POST of /files/compose: it joins files into one and deletes them.
func (s *Service) Compose(w http.ResponseWriter, r *http.Request) {
	res, err := s.compose(w, r)
	if err != nil {
		fail(w, err)
		return
	}
	writeJSON(w, res)
}

func (s *Service) compose(w http.ResponseWriter, r *http.Request) (*written, error) {
	var req composeRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxComposeBody)).Decode(&req); err != nil {
		return nil, hearth.Wrap(hearth.InvalidArgument, err, "the body is not the expected JSON of at most %d bytes", maxComposeBody)
	}
	switch {
	case len(req.Sources) == 0:
		return nil, hearth.Errorf(hearth.InvalidArgument, "source_paths is empty")
	case len(req.Sources) > maxSources:
		return nil, hearth.Errorf(hearth.InvalidArgument, "source_paths has more than %d elements", maxSources)
	case req.Destination == "":
		return nil, hearth.Errorf(hearth.InvalidArgument, "destination is empty")
	}
	ses := s.session()
	who, err := s.named(req.Username, ses)
	if err != nil {
		return nil, err
	}
	dst, err := who.Resolve(req.Destination, ses.Workdir)
	if err != nil {
		return nil, err
	}
	sources, err := resolveSources(req.Sources, dst, who, ses)
	if err != nil {
		return nil, err
	}
	c := &chain{paths: sources}
	defer c.close()
	if err := s.store(dst, who, c, nil); err != nil {
		return nil, err
	}
	for _, p := range sources {
		if err := os.Remove(p); err != nil && !os.IsNotExist(err) {
			return nil, classify(err, "cannot remove", p)
		}
	}
	return &written{Name: filepath.Base(dst), Path: dst, Type: "file"}, nil
}

// resolveSources checks that every source is a plain file other than dst.
func resolveSources(names []string, dst string, who account.Account, ses account.Session) ([]string, error) {
	target, terr := os.Stat(dst)
	paths := make([]string, 0, len(names))
	for _, name := range names {
		p, err := who.Resolve(name, ses.Workdir)
		if err != nil {
			return nil, err
		}
		f, fi, err := openRegular(p)
		if err != nil {
			return nil, err
		}
		_ = f.Close()
		if p == dst || terr == nil && os.SameFile(fi, target) {
			return nil, hearth.Errorf(hearth.InvalidArgument, "destination '%s' is one of source_paths", dst)
		}
		paths = append(paths, p)
	}
	return paths, nil
}

// chain reads files one after the other, with one of them open at a time.
type chain struct {
	paths []string
	open  *os.File
}

// Read implements io.Reader.
func (c *chain) Read(p []byte) (int, error) {
	for {
		if c.open == nil {
			if len(c.paths) == 0 {
				return 0, io.EOF
			}
			f, _, err := openRegular(c.paths[0])
			if err != nil {
				return 0, err
			}
			c.open, c.paths = f, c.paths[1:]
		}
		n, err := c.open.Read(p)
		if err != io.EOF {
			return n, err
		}
		c.close()
		if n > 0 {
			return n, nil
		}
	}
}

func (c *chain) close() {
	if c.open != nil {
		_ = c.open.Close()
		c.open = nil
	}
}
