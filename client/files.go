package client

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"hearth/internal/gen/guestv1"
	"hearth/internal/gen/guestv1/guestv1connect"
)

// Files works on a sandbox's files as its default user. Relative paths start at
// that user's home.
type Files struct {
	sandbox *Sandbox
	rpc     guestv1connect.FilesystemClient
}

// FileType says what an Entry is.
type FileType string

// The file types.
const (
	File      FileType = "file"
	Directory FileType = "dir"
	Symlink   FileType = "symlink"
	Unknown   FileType = ""
)

// Entry describes one file or directory.
type Entry struct {
	Name        string
	Path        string
	Type        FileType // of the target, for a symbolic link
	Size        int64
	Mode        uint32
	Permissions string // like "-rw-r--r--"
	Owner       string
	Group       string
	ModifiedAt  time.Time
	Target      string // of a symbolic link
}

// Open returns the content of a file; the caller closes it.
func (f *Files) Open(ctx context.Context, path string) (io.ReadCloser, error) {
	resp, err := f.sandbox.Request(ctx, http.MethodGet, daemonPort, "/files"+query("path", path), nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, errorOf(resp)
	}
	return resp.Body, nil
}

// Read returns the content of a file, which has to fit into memory.
func (f *Files) Read(ctx context.Context, path string) ([]byte, error) {
	r, err := f.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// Write writes a file of any size, making the directories above it, and returns
// the path it has.
func (f *Files) Write(ctx context.Context, path string, content io.Reader) (string, error) {
	s := f.sandbox
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.baseURL(daemonPort)+"/files"+query("path", path), content)
	if err != nil {
		return "", err
	}
	s.route(req, daemonPort)
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := s.client.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return "", errorOf(resp)
	}
	var wrote []struct {
		Path string `json:"path"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&wrote); err != nil || len(wrote) == 0 {
		return "", fmt.Errorf("the sandbox's answer to an upload is not what it should be: %w", err)
	}
	return wrote[0].Path, nil
}

// List returns what is in a directory, down to depth levels; 0 is 1.
func (f *Files) List(ctx context.Context, path string, depth int) ([]Entry, error) {
	resp, err := f.rpc.ListDir(ctx, connect.NewRequest(&guestv1.ListDirRequest{Path: path, Depth: uint32(max(depth, 1))}))
	if err != nil {
		return nil, fromRPC(err)
	}
	out := make([]Entry, 0, len(resp.Msg.GetEntries()))
	for _, e := range resp.Msg.GetEntries() {
		out = append(out, toEntry(e))
	}
	return out, nil
}

// Stat describes a file without following a link.
func (f *Files) Stat(ctx context.Context, path string) (Entry, error) {
	resp, err := f.rpc.Stat(ctx, connect.NewRequest(&guestv1.StatRequest{Path: path}))
	if err != nil {
		return Entry{}, fromRPC(err)
	}
	return toEntry(resp.Msg.GetEntry()), nil
}

// Exists reports whether there is something at path.
func (f *Files) Exists(ctx context.Context, path string) (bool, error) {
	_, err := f.Stat(ctx, path)
	if NotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// MakeDir makes a directory and those above it. Conflict(err) is true when it exists.
func (f *Files) MakeDir(ctx context.Context, path string) error {
	_, err := f.rpc.MakeDir(ctx, connect.NewRequest(&guestv1.MakeDirRequest{Path: path}))
	return fromRPC(err)
}

// Rename moves a file or directory, replacing a file that is in the way.
func (f *Files) Rename(ctx context.Context, from, to string) (Entry, error) {
	resp, err := f.rpc.Move(ctx, connect.NewRequest(&guestv1.MoveRequest{Source: from, Destination: to}))
	if err != nil {
		return Entry{}, fromRPC(err)
	}
	return toEntry(resp.Msg.GetEntry()), nil
}

// Remove deletes a file, or a directory with all it holds. What is not there is
// not an error.
func (f *Files) Remove(ctx context.Context, path string) error {
	_, err := f.rpc.Remove(ctx, connect.NewRequest(&guestv1.RemoveRequest{Path: path}))
	return fromRPC(err)
}

// Change is something that happened in a watched directory.
type Change struct {
	Name string // relative to the watched directory
	Type string // create, write, remove, rename or chmod
}

// WatchOptions say what to watch.
type WatchOptions struct {
	Recursive bool // directories below, too, be they there now or later
}

// Watch returns the changes in a directory. They are complete from the moment
// Watch returns until ctx ends; the sequence is taken once, to its end or a break.
func (f *Files) Watch(ctx context.Context, path string, o WatchOptions) (iter.Seq2[Change, error], error) {
	req := connect.NewRequest(&guestv1.WatchDirRequest{Path: path, Recursive: o.Recursive})
	req.Header().Set("Keepalive-Ping-Interval", keepalive)
	stream, err := f.rpc.WatchDir(ctx, req)
	if err != nil {
		return nil, fromRPC(err)
	}
	if !stream.Receive() || stream.Msg().GetStart() == nil { // the watch is in place
		defer stream.Close()
		return nil, endOf(stream.Err())
	}
	return func(yield func(Change, error) bool) {
		defer stream.Close()
		for stream.Receive() {
			e := stream.Msg().GetFilesystem()
			if e != nil && !yield(Change{Name: e.GetName(), Type: changeName(e.GetType())}, nil) {
				return
			}
		}
		if ctx.Err() == nil {
			yield(Change{}, endOf(stream.Err()))
		}
	}, nil
}

func changeName(t guestv1.EventType) string {
	switch t {
	case guestv1.EventType_EVENT_TYPE_CREATE:
		return "create"
	case guestv1.EventType_EVENT_TYPE_WRITE:
		return "write"
	case guestv1.EventType_EVENT_TYPE_REMOVE:
		return "remove"
	case guestv1.EventType_EVENT_TYPE_RENAME:
		return "rename"
	case guestv1.EventType_EVENT_TYPE_CHMOD:
		return "chmod"
	}
	return ""
}

func toEntry(e *guestv1.EntryInfo) Entry {
	out := Entry{
		Name: e.GetName(), Path: e.GetPath(), Size: e.GetSize(), Mode: e.GetMode(), Permissions: e.GetPermissions(),
		Owner: e.GetOwner(), Group: e.GetGroup(), ModifiedAt: e.GetModifiedTime().AsTime(), Target: e.GetSymlinkTarget(),
	}
	switch e.GetType() {
	case guestv1.FileType_FILE_TYPE_FILE:
		out.Type = File
	case guestv1.FileType_FILE_TYPE_DIRECTORY:
		out.Type = Directory
	case guestv1.FileType_FILE_TYPE_SYMLINK:
		out.Type = Symlink
	}
	return out
}

// DownloadURL returns a URL that anyone can read the file with, for the given
// time; 0 is for as long as the sandbox lives.
func (f *Files) DownloadURL(path string, valid time.Duration) string {
	return f.signed("read", path, valid)
}

// UploadURL is DownloadURL for a POST that writes the file.
func (f *Files) UploadURL(path string, valid time.Duration) string {
	return f.signed("write", path, valid)
}

// signed builds the URL; the signature is a hash over what it allows and the
// sandbox's access token.
func (f *Files) signed(operation, path string, valid time.Duration) string {
	text := path + ":" + operation + "::" + f.sandbox.AccessToken
	expires := ""
	if valid > 0 {
		expires = strconv.FormatInt(time.Now().Add(valid).Unix(), 10)
		text += ":" + expires
	}
	sum := sha256.Sum256([]byte(text))
	signature := "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
	if f.sandbox.AccessToken == "" {
		signature, expires = "", ""
	}
	return f.sandbox.baseURL(daemonPort) + "/files" +
		query("path", path, "signature", signature, "signature_expiration", expires)
}
