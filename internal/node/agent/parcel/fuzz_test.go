package parcel_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"testing"

	"hearth/internal/hearth"
	"hearth/internal/node/agent/parcel"
)

type taker struct{ bytes int64 }

func (*taker) Begin(context.Context, *parcel.Contents) error { return nil }

func (k *taker) Take(_ context.Context, b parcel.Blob, r io.Reader) error {
	n, err := io.Copy(io.Discard, r)
	k.bytes += n
	return err
}

// FuzzRead: whatever comes, no panic, no more than the limit, and an error of
// the right kind or a snapshot that holds together.
func FuzzRead(f *testing.F) {
	content := []byte("pages")
	sum := sha256.Sum256(content)
	c := &parcel.Contents{Snapshots: []hearth.Snapshot{{ID: "s1", Driver: "fake", Files: []hearth.File{{Name: "a", Bytes: 5, SHA256: hex.EncodeToString(sum[:])}}}}}
	var b bytes.Buffer
	err := parcel.Write(f.Context(), &b, c, func(context.Context, parcel.Blob) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		const limit = 1 << 16
		var k taker
		c, err := parcel.Read(t.Context(), bytes.NewReader(raw), limit, &k)
		if err != nil && hearth.KindOf(err) != hearth.InvalidArgument {
			t.Fatal(err)
		}
		if k.bytes > limit || err == nil && len(c.Snapshots) == 0 {
			t.Fatalf("%d bytes, %+v", k.bytes, c)
		}
	})
}
