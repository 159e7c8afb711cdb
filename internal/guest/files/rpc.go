package files

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"

	"connectrpc.com/connect"

	"hearth/internal/gen/guestv1"
	"hearth/internal/guest/process/rpcerr"
	"hearth/internal/hearth"
)

// maxEntries bounds one answer of ListDir.
const maxEntries = 200_000

// legacyAgent is the exact User-Agent of clients that know three fields of an entry only.
const legacyAgent = "connect-python"

func parent(path string) string { return filepath.Dir(path) }

// Stat describes one file. It answers the RPC of that name.
func (s *Service) Stat(_ context.Context, req *connect.Request[guestv1.StatRequest]) (*connect.Response[guestv1.StatResponse], error) {
	path, _, err := s.locate(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, rpcerr.From(err)
	}
	e, err := stat(path)
	if err != nil {
		return nil, rpcerr.From(err)
	}
	res := connect.NewResponse(&guestv1.StatResponse{Entry: e})
	legacy(req.Header().Get("User-Agent"), res, e)
	return res, nil
}

func stat(path string) (*guestv1.EntryInfo, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, classify(err, "file not found:", path)
	}
	return newDescriber().describe(path, fi), nil
}

// legacy reduces an answer to what very old clients can decode.
func legacy(agent string, res connect.AnyResponse, entries ...*guestv1.EntryInfo) {
	if agent != legacyAgent {
		return
	}
	res.Header().Set("X-E2B-Legacy-SDK", "true")
	for _, e := range entries {
		name, typ, path := e.Name, e.Type, e.Path
		e.Reset()
		e.Name, e.Type, e.Path = name, typ, path
	}
}

// ListDir describes what is in a directory. It answers the RPC of that name.
func (s *Service) ListDir(ctx context.Context, req *connect.Request[guestv1.ListDirRequest]) (*connect.Response[guestv1.ListDirResponse], error) {
	path, _, err := s.locate(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, rpcerr.From(err)
	}
	if err := mustBeDir(path, "path is not a directory: "+path); err != nil {
		return nil, rpcerr.From(err)
	}
	l := lister{ctx: ctx, describer: newDescriber()}
	if err := l.list(path, max(req.Msg.GetDepth(), 1)); err != nil {
		return nil, rpcerr.From(err)
	}
	res := connect.NewResponse(&guestv1.ListDirResponse{Entries: l.entries})
	legacy(req.Header().Get("User-Agent"), res, l.entries...)
	return res, nil
}

// mustBeDir fails unless path leads to a directory.
func mustBeDir(path, otherwise string) error {
	switch fi, err := os.Stat(path); {
	case err != nil:
		return classify(err, "path not found:", path)
	case !fi.IsDir():
		return hearth.Errorf(hearth.InvalidArgument, "%s", otherwise)
	}
	return nil
}

type lister struct {
	ctx context.Context
	*describer
	entries []*guestv1.EntryInfo
}

// list adds what is in dir, down to depth levels, in lexical order. Links to
// directories are not followed, and what vanishes meanwhile is left out.
func (l *lister) list(dir string, depth uint32) error {
	found, err := os.ReadDir(dir)
	if err != nil {
		return classify(err, "cannot list directory", dir)
	}
	for _, f := range found {
		if err := l.ctx.Err(); err != nil {
			return err
		}
		fi, err := f.Info()
		if err != nil {
			continue
		}
		if len(l.entries) == maxEntries {
			return hearth.Errorf(hearth.ResourceExhausted, "more than %d entries below the directory; list a smaller depth", maxEntries)
		}
		path := filepath.Join(dir, f.Name())
		l.entries = append(l.entries, l.describe(path, fi))
		if fi.IsDir() && depth > 1 {
			if err := l.list(path, depth-1); err != nil && hearth.KindOf(err) != hearth.NotFound {
				return err
			}
		}
	}
	return nil
}

// MakeDir creates a directory and its parents. It answers the RPC of that name.
func (s *Service) MakeDir(_ context.Context, req *connect.Request[guestv1.MakeDirRequest]) (*connect.Response[guestv1.MakeDirResponse], error) {
	path, who, err := s.locate(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, rpcerr.From(err)
	}
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return nil, rpcerr.From(hearth.Errorf(hearth.AlreadyExists, "directory already exists: %s", path))
	}
	if err := makeDirs(path, who); err != nil {
		return nil, rpcerr.From(err)
	}
	e, err := stat(path)
	if err != nil {
		return nil, rpcerr.From(err)
	}
	res := connect.NewResponse(&guestv1.MakeDirResponse{Entry: e})
	legacy(req.Header().Get("User-Agent"), res, e)
	return res, nil
}

// Move renames a file or directory, over an existing file too. It answers the RPC of that name.
func (s *Service) Move(_ context.Context, req *connect.Request[guestv1.MoveRequest]) (*connect.Response[guestv1.MoveResponse], error) {
	from, who, err := s.locate(req.Header(), req.Msg.GetSource())
	if err != nil {
		return nil, rpcerr.From(err)
	}
	to, _, err := s.locate(req.Header(), req.Msg.GetDestination())
	if err != nil {
		return nil, rpcerr.From(err)
	}
	if _, err := os.Lstat(from); err != nil {
		return nil, rpcerr.From(classify(err, "source file not found:", from))
	}
	if err := makeDirs(parent(to), who); err != nil {
		return nil, rpcerr.From(err)
	}
	if err := os.Rename(from, to); err != nil {
		return nil, rpcerr.From(classify(err, "cannot move", from))
	}
	e, err := stat(to)
	if err != nil {
		return nil, rpcerr.From(err)
	}
	res := connect.NewResponse(&guestv1.MoveResponse{Entry: e})
	legacy(req.Header().Get("User-Agent"), res, e)
	return res, nil
}

// Remove deletes a file or a whole directory; a missing one is fine. It answers the RPC of that name.
func (s *Service) Remove(_ context.Context, req *connect.Request[guestv1.RemoveRequest]) (*connect.Response[guestv1.RemoveResponse], error) {
	path, _, err := s.locate(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, rpcerr.From(err)
	}
	if path == "/" {
		return nil, rpcerr.From(hearth.Errorf(hearth.InvalidArgument, "path: the root directory cannot be removed"))
	}
	if err := os.RemoveAll(path); err != nil {
		return nil, rpcerr.From(classify(err, "cannot remove", path))
	}
	return connect.NewResponse(&guestv1.RemoveResponse{}), nil
}

// isDir is whether path itself, not what it links to, is a directory.
func isDir(path string) (fs.FileInfo, bool) {
	fi, err := os.Lstat(path)
	return fi, err == nil && fi.IsDir()
}
