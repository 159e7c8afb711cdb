package files

import (
	"errors"
	"net/http"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
)

const (
	metadataHeader = "X-Metadata-"
	maxMetadataKey = 246     // bytes; with the prefix it just fits an attribute name
	maxMetadata    = 4 << 10 // bytes of all prefixes, keys and values of a file
)

// parseMetadata takes a file's metadata out of a request's headers.
func parseMetadata(h http.Header) (map[string]string, error) {
	var m map[string]string
	total := 0
	for name, values := range h {
		key, ok := strings.CutPrefix(name, metadataHeader)
		if !ok || len(values) == 0 {
			continue
		}
		key = strings.ToLower(key)
		value := values[0]
		switch {
		case key == "":
			return nil, hearth.Errorf(hearth.InvalidArgument, "invalid metadata: a key is empty")
		case len(key) > maxMetadataKey:
			return nil, hearth.Errorf(hearth.InvalidArgument, "invalid metadata: a key is longer than %d bytes", maxMetadataKey)
		case !printable(key) || !printable(value):
			return nil, hearth.Errorf(hearth.InvalidArgument, "invalid metadata: '%s' is not printable ASCII", key)
		}
		if total += len(xattrPrefix) + len(key) + len(value); total > maxMetadata {
			return nil, hearth.Errorf(hearth.InvalidArgument, "invalid metadata: keys and values take more than %d bytes", maxMetadata)
		}
		if m == nil {
			m = map[string]string{}
		}
		m[key] = value
	}
	return m, nil
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e })
}

// setMetadata replaces the metadata of f. A file system without attributes drops it silently.
func setMetadata(f *os.File, m map[string]string) error {
	fd := int(f.Fd())
	for _, key := range xattrKeys(func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) }) {
		if _, ok := m[key]; !ok {
			_ = unix.Fremovexattr(fd, xattrPrefix+key)
		}
	}
	for key, value := range m {
		err := unix.Fsetxattr(fd, xattrPrefix+key, []byte(value), 0)
		if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}
