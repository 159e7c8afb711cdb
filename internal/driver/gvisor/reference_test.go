package gvisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// Benchmarks restore what the published gVisor wrote, by a program that has it.
func TestReferenceOfPublishedCheckpoints(t *testing.T) {
	dir, err := os.MkdirTemp("", "ref") // the driver's root must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d, err := New(Config{Root: filepath.Join(dir, "r")})
	if err != nil {
		t.Fatal(err)
	}
	layer := filepath.Join(dir, "layer.erofs")
	image := make([]byte, 4096)
	copy(image[1024:], []byte{0xe2, 0xe1, 0xf5, 0xe0})
	if err := os.WriteFile(layer, image, 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := driver.LayerID(layer)
	if err != nil {
		t.Fatal(err)
	}
	published, err := checkpointKey(publishedFormat)
	if err != nil {
		t.Fatal(err)
	}
	own, err := d.key()
	if err != nil {
		t.Fatal(err)
	}
	for n, tc := range []struct {
		key string
		ok  bool
	}{{own, true}, {published, true}, {"x" + published, false}, {strings.Replace(published, "/systrap", "+cow.0/systrap", 1), false}} {
		from := filepath.Join(dir, string(rune('a'+n)))
		if err := os.Mkdir(from, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range checkpointFiles {
			if err := os.WriteFile(filepath.Join(from, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		man := manifest{ID: newCheckpointID(), Key: tc.key, Layer: id, DiskMiB: 64, Memory: 64}
		if err := man.write(from, checkpointFiles[:]...); err != nil {
			t.Fatal(err)
		}
		spec := driver.Spec{
			ID: "m" + filepath.Base(from), Dir: filepath.Join(dir, "m"+filepath.Base(from)), Layers: []string{layer},
			Resources: hearth.Resources{VCPUs: 1, MemoryMiB: 64, DiskMiB: 64}, Hostname: "m",
			From: &driver.Checkpoint{Driver: Name, Key: tc.key, Dir: from},
		}
		if err := os.Mkdir(spec.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		args, err := d.Reference(spec)
		if !tc.ok {
			if hearth.KindOf(err) != hearth.FailedPrecondition {
				t.Errorf("%s: got %v", tc.key, err)
			}
			continue
		}
		if err != nil || !strings.Contains(strings.Join(args, " "), " restore --detach ") || !strings.Contains(strings.Join(args, " "), "--image-path="+from) {
			t.Errorf("%s: got %q, %v", tc.key, args, err)
		}
		if _, err := d.origin(spec); (err == nil) != (tc.key == own) { // Start is for what this build wrote
			t.Errorf("%s: a start's origin: %v", tc.key, err)
		}
		if err := d.uids.Free(spec.ID); err != nil {
			t.Error(err)
		}
	}
}
