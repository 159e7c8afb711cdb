package hearth

// EntryKind says what an entry of a file system is.
type EntryKind byte

// The kinds of entries.
const (
	RegularFile EntryKind = 'f'
	Directory   EntryKind = 'd'
	Symlink     EntryKind = 'l'
	OtherEntry  EntryKind = 'o' // a device, a socket, a pipe
)

// Entry is one name in the root of a sandbox.
type Entry struct {
	Path   string // absolute, without "." and ".."; any bytes but NUL
	Kind   EntryKind
	Size   int64  // bytes of a regular file; else 0
	Mode   uint32 // permission, setuid, setgid and sticky bits as the kernel has them
	MTime  int64  // when its content changed last, in nanoseconds since 1970
	UID    uint32
	GID    uint32
	Target string // of a symlink
}
