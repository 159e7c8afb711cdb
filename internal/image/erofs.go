package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"

	"hearth/internal/hearth"
)

// Image is one finished EROFS image.
type Image struct {
	Path   string // absolute
	Bytes  int64
	SHA256 string // lower-case hex, of the whole file
	UUID   string // of the superblock, derived from the content
}

// The superblock of EROFS: where it starts, and the fields that Erofs sets.
const (
	superOffset   = 1024
	superMagic    = 0xE0F5E1E2
	superChecksum = 4  // uint32, CRC-32C of the rest of the first block
	superFeatures = 8  // uint32; bit 0: there is a checksum
	superBlkBits  = 12 // uint8
	superTime     = 24 // uint64 seconds and uint32 nanoseconds
	superUUID     = 48 // 16 bytes
)

// Erofs packs the tree at dir into an EROFS image at out, which must not exist.
// Ownership, modes, times, hard links and xattrs are those of the tree; equal
// trees give equal bytes. The UUID is derived from the content, because gVisor
// tells images apart by their superblock alone: a checkpoint is never restored
// upon an image of other content.
func Erofs(ctx context.Context, dir, out string, report Progress) (Image, error) {
	start := time.Now()
	if _, err := os.Lstat(out); err == nil {
		return Image{}, hearth.Errorf(hearth.AlreadyExists, "%s exists", out)
	}
	// noinline_data: gVisor maps files from the image, which needs whole blocks.
	// Extended inodes keep each file's own time; .pyc files depend on it.
	err := run(ctx, command{
		name: "mkfs.erofs", pkg: "erofs-utils", args: []string{
			"--quiet", "--preserve-mtime", "-Eforce-inode-extended,noinline_data",
			"-U", "00000000-0000-0000-0000-000000000000", out, dir,
		}})
	if err == nil {
		var img Image
		if img, err = seal(ctx, out); err == nil {
			report.send(start, Event{Step: "image", Message: "packed the root file system", Done: img.Bytes, Total: img.Bytes, Unit: "bytes"})
			return img, nil
		}
	}
	_ = os.Remove(out)
	return Image{}, diskError(err, filepath.Dir(out))
}

// GuestErofs packs the guest daemon alone into an EROFS image at out, as the
// executable /hearth-guest: it is mounted at /.guest in every machine.
func GuestErofs(ctx context.Context, binary []byte, out string) (Image, error) {
	dir := out + ".files"
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil { // a crash may have left it
		return Image{}, diskError(err, filepath.Dir(out))
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "hearth-guest")
	if err := os.WriteFile(path, binary, 0o755); err != nil {
		return Image{}, diskError(err, dir)
	}
	for _, p := range []string{path, dir} { // the same binary gives the same image
		if err := errors.Join(os.Chmod(p, 0o755), os.Chtimes(p, time.Unix(0, 0), time.Unix(0, 0))); err != nil {
			return Image{}, err
		}
	}
	return Erofs(ctx, dir, out, nil)
}

// seal removes what varies between two equal images (the time of making), sets
// the UUID from the content and syncs the file.
func seal(ctx context.Context, path string) (Image, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return Image{}, err
	}
	defer f.Close()
	head := make([]byte, 4096)
	if _, err := io.ReadFull(f, head); err != nil {
		return Image{}, hearth.Wrap(hearth.Internal, err, "mkfs.erofs wrote a truncated image")
	}
	super := head[superOffset:]
	if binary.LittleEndian.Uint32(super) != superMagic || super[superBlkBits] != 12 {
		return Image{}, hearth.Errorf(hearth.Internal, "mkfs.erofs wrote an image of an unknown form")
	}
	clear(super[superTime : superTime+12])
	clear(super[superUUID : superUUID+16])
	clear(super[superChecksum : superChecksum+4])
	content := sha256.New()
	content.Write(head)
	size, err := copyCtx(ctx, content, bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return Image{}, err
	}
	uuid := content.Sum(nil)[:16]
	uuid[6] = uuid[6]&0x0f | 0x80 // version 8: made by a rule of its own
	uuid[8] = uuid[8]&0x3f | 0x80
	copy(super[superUUID:], uuid)
	if binary.LittleEndian.Uint32(super[superFeatures:])&1 != 0 {
		sum := ^crc32.Checksum(super, crc32.MakeTable(crc32.Castagnoli))
		binary.LittleEndian.PutUint32(super[superChecksum:], sum)
	}
	if _, err := f.WriteAt(head, 0); err != nil {
		return Image{}, err
	}
	whole := sha256.New()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return Image{}, err
	}
	if _, err := copyCtx(ctx, whole, f); err != nil {
		return Image{}, err
	}
	if err := f.Sync(); err != nil {
		return Image{}, err
	}
	h := hex.EncodeToString(uuid)
	return Image{
		Path: path, Bytes: size + int64(len(head)), SHA256: hex.EncodeToString(whole.Sum(nil)),
		UUID: h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:],
	}, nil
}

// copyCtx is io.Copy with a large buffer that ends soon after ctx.
func copyCtx(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	return copyBuf(ctx, w, r, make([]byte, 1<<20))
}

func copyBuf(ctx context.Context, w io.Writer, r io.Reader, buf []byte) (int64, error) {
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		k, err := r.Read(buf)
		if k > 0 {
			m, werr := w.Write(buf[:k])
			n += int64(m)
			if werr != nil {
				return n, werr
			}
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
