package chunkblob

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearth/internal/blob"
	"hearth/internal/blob/blobtest"
	"hearth/internal/blob/fileblob"
)

// TestChunkSizes compares ways to cut: it packs the directories of
// HEARTH_CHECKPOINTS (separated by colons, each a checkpoint that follows from
// the one before) one after the other and says what each took. HEARTH_CUT is a
// part of the name of the only way to try, HEARTH_ENCRYPT any text for a key.
func TestChunkSizes(t *testing.T) {
	list := os.Getenv("HEARTH_CHECKPOINTS")
	if list == "" {
		t.Skip("set HEARTH_CHECKPOINTS to directories with checkpoints to compare")
	}
	const k = 1 << 10
	for _, c := range []struct {
		name string
		cut  cutter
	}{
		{"fixed 4K", cutter{4 * k, 4 * k, 0}}, {"fixed 16K", cutter{16 * k, 16 * k, ^uint32(0)}}, {"fixed 64K", cutter{64 * k, 64 * k, ^uint32(0)}},
		{"fixed 256K", cutter{256 * k, 256 * k, ^uint32(0)}},
		{"content 8K..64K mean 16K", cutter{8 * k, 64 * k, 1}}, {"content 8K..128K mean 24K", cutter{8 * k, 128 * k, 3}},
		{"content 16K..128K mean 44K", cutter{16 * k, 128 * k, 7}},
		{"content 16K..256K mean 76K", cutter{16 * k, 256 * k, 15}}, {"content 32K..256K mean 156K", cutter{32 * k, 256 * k, 31}},
	} {
		if !strings.Contains(c.name, os.Getenv("HEARTH_CUT")) {
			continue
		}
		blobs, err := fileblob.Open(blobtest.TempDir(t))
		if err != nil {
			t.Fatal(err)
		}
		var key *Key
		if os.Getenv("HEARTH_ENCRYPT") != "" {
			key, _ = NewKey(make([]byte, KeyBytes))
		}
		s, err := New(blobs, blobtest.TempDir(t), key)
		if err != nil {
			t.Fatal(err)
		}
		s.cut = c.cut
		var like []string
		for _, dir := range strings.Split(list, ":") {
			files := sources(t, dir)
			began, busy := time.Now(), cpu(t)
			p, err := s.Pack(t.Context(), files, like)
			if err != nil {
				t.Fatal(err)
			}
			packed, packing := time.Since(began), cpu(t)-busy
			began, busy = time.Now(), cpu(t)
			like = nil
			for _, f := range files {
				out, err := os.Create(filepath.Join(blobtest.TempDir(t), "out"))
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Unpack(t.Context(), f.SHA256, out); err != nil {
					t.Fatal(err)
				}
				out.Close()
				os.Remove(out.Name())
				like = append(like, f.SHA256)
			}
			unpacked, unpacking := time.Since(began), cpu(t)-busy
			chunks, index := 0, int64(0)
			for _, name := range like {
				ix, err := s.index(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				info, _ := blobs.Stat(t.Context(), filePrefix+name)
				chunks, index = chunks+len(ix.extents), index+info.Size
			}
			fmt.Printf("%-28s %-6s raw %6.1f MB zero %5.1f shared %5.1f stored %5.2f index %5.0f KB chunks %6d pack %4d ms (cpu %4d) unpack %4d ms (cpu %4d)\n", c.name, filepath.Base(dir),
				mb(p.Bytes), mb(p.Holes), mb(p.Shared), mb(p.Stored), float64(index)/1e3, chunks, packed.Milliseconds(), packing.Milliseconds(), unpacked.Milliseconds(), unpacking.Milliseconds())
		}
	}
}

// cpu is the time that this process has computed.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func mb(n int64) float64 { return float64(n) / 1e6 }

func sources(t *testing.T, dir string) (list []blob.Source) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == "manifest.json" {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		list = append(list, blob.Source{SHA256: hex.EncodeToString(h.Sum(nil)), Path: f.Name()})
	}
	return list
}
