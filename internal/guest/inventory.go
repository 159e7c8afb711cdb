package guest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"path"
	"strings"

	"hearth/internal/hearth"
)

// InventoryPath lists the root's files. It is answered by a sealed daemon alone, and
// every other process in the machine has been stopped for good by then: the machine
// is one that was started to be looked at.
const InventoryPath = "/inventory"

// Bounds of an inventory, which whoever reads one enforces, too.
const (
	MaxEntries   = 500_000
	MaxInventory = 96 << 20 // bytes
	maxPath      = 4096
)

// An inventory on the wire is inventoryMagic and then, for each entry, in any order:
// a byte that is its kind; its path and target, each as a length and bytes; size,
// mode, time, uid and gid. The numbers are varints, the time a signed one. At the end
// there is a byte 0, the number of entries, and a byte: 1 if there are more.
const inventoryMagic = "HRTHFI01"

// InventoryWriter writes an inventory.
type InventoryWriter struct {
	w     *bufio.Writer
	buf   []byte
	count uint64
	size  int
	full  bool
}

// NewInventoryWriter begins an inventory.
func NewInventoryWriter(w io.Writer) *InventoryWriter {
	out := &InventoryWriter{w: bufio.NewWriterSize(w, 64<<10), size: len(inventoryMagic)}
	_, _ = out.w.WriteString(inventoryMagic) // End tells
	return out
}

// Add writes one entry. False: there is no room for it.
func (o *InventoryWriter) Add(e hearth.Entry) bool {
	b := append(o.buf[:0], byte(e.Kind))
	for _, text := range []string{e.Path, e.Target} {
		b = binary.AppendUvarint(b, uint64(len(text)))
		b = append(b, text...)
	}
	b = binary.AppendUvarint(b, uint64(e.Size))
	b = binary.AppendUvarint(b, uint64(e.Mode))
	b = binary.AppendVarint(b, e.MTime)
	b = binary.AppendUvarint(b, uint64(e.UID))
	b = binary.AppendUvarint(b, uint64(e.GID))
	o.buf = b
	if o.full = o.full || o.count == MaxEntries || o.size+len(b) > MaxInventory-64; o.full {
		return false
	}
	o.count++
	o.size += len(b)
	_, err := o.w.Write(b)
	return err == nil
}

// Skip notes that there are entries that were not added.
func (o *InventoryWriter) Skip() { o.full = true }

// End ends the inventory.
func (o *InventoryWriter) End() error {
	b := binary.AppendUvarint([]byte{0}, o.count)
	if o.full {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	_, err := o.w.Write(b)
	return errors.Join(err, o.w.Flush())
}

// ReadInventory reads what InventoryWriter wrote, and believes nothing of it. more
// says that there are entries that are not listed.
func ReadInventory(r io.Reader) (list []hearth.Entry, more bool, err error) {
	in := bufio.NewReaderSize(io.LimitReader(r, MaxInventory), 64<<10)
	head := make([]byte, len(inventoryMagic))
	if _, err := io.ReadFull(in, head); err != nil || string(head) != inventoryMagic {
		return nil, false, badInventory("it does not begin as one", err)
	}
	for {
		kind, err := in.ReadByte()
		if err != nil {
			return nil, false, badInventory("it is cut short", err)
		}
		if kind == 0 {
			break
		}
		if len(list) == MaxEntries {
			return nil, false, badInventory("it has too many entries", nil)
		}
		e, err := readEntry(in, hearth.EntryKind(kind))
		if err != nil {
			return nil, false, err
		}
		list = append(list, e)
	}
	count, err := binary.ReadUvarint(in)
	if err != nil || count != uint64(len(list)) {
		return nil, false, badInventory("it has not as many entries as it says", err)
	}
	last, err := in.ReadByte()
	if err != nil || last > 1 {
		return nil, false, badInventory("it does not end as one", err)
	}
	return list, last == 1, nil
}

func badInventory(why string, err error) error {
	if err == nil {
		return hearth.Errorf(hearth.FailedPrecondition, "the list of files is not one: %s", why)
	}
	return hearth.Wrap(hearth.FailedPrecondition, err, "the list of files is not one: %s", why)
}

func readEntry(in *bufio.Reader, kind hearth.EntryKind) (e hearth.Entry, err error) {
	e.Kind = kind
	switch kind {
	case hearth.RegularFile, hearth.Directory, hearth.Symlink, hearth.OtherEntry:
	default:
		return e, badInventory("an entry has an unknown kind", nil)
	}
	if e.Path, err = readText(in); err == nil {
		e.Target, err = readText(in)
	}
	var numbers [4]uint64
	for i, most := range []uint64{1 << 62, 0o7777, 1<<32 - 1, 1<<32 - 1} { // size, mode, uid, gid
		if i == 2 && err == nil {
			e.MTime, err = binary.ReadVarint(in)
		}
		if err == nil {
			numbers[i], err = binary.ReadUvarint(in)
		}
		if err == nil && numbers[i] > most {
			return e, badInventory("a number is too large", nil)
		}
	}
	if err != nil {
		return e, badInventory("an entry is cut short or too long", err)
	}
	e.Size, e.Mode, e.UID, e.GID = int64(numbers[0]), uint32(numbers[1]), uint32(numbers[2]), uint32(numbers[3])
	if !strings.HasPrefix(e.Path, "/") || path.Clean(e.Path) != e.Path || strings.ContainsRune(e.Path+e.Target, 0) {
		return e, badInventory("a path is not an absolute one", nil)
	}
	return e, nil
}

var errLong = errors.New("longer than a path can be")

func readText(in *bufio.Reader) (string, error) {
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return "", err
	}
	if n > maxPath {
		return "", errLong
	}
	b := make([]byte, n)
	_, err = io.ReadFull(in, b)
	return string(b), err
}
