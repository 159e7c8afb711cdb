package cpio

import (
	"bytes"
	"errors"
	"os/exec"
	"reflect"
	"strings"
	"testing"
)

func tree() []Entry {
	return []Entry{
		{Name: "dev", Mode: Dir | 0o755},
		{Name: "dev/console", Mode: Device | 0o600, Major: 5, Minor: 1},
		{Name: "init", Mode: Regular | 0o755, Data: []byte("#!/bin/sh\n")},
		{Name: "empty", Mode: Regular | 0o644},
		{Name: "link", Mode: Link | 0o777, Data: []byte("init")},
		{Name: "abcd", Mode: Regular | 0o600, Data: bytes.Repeat([]byte{0, 1, 2}, 100_001)},
	}
}

func TestRoundTrip(t *testing.T) {
	var a, b bytes.Buffer
	for _, w := range []*bytes.Buffer{&a, &b} {
		if err := Write(w, tree()); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two archives of the same files differ")
	}
	if a.Len()%4 != 0 {
		t.Errorf("%d bytes are not a multiple of 4", a.Len())
	}
	got, err := Read(&a)
	if err != nil || !reflect.DeepEqual(got, tree()) {
		t.Errorf("got %v, %v", got, err)
	}
}

// TestCpioReads: the program that the form is named after reads it.
func TestCpioReads(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("cpio is not installed")
	}
	var b bytes.Buffer
	if err := Write(&b, tree()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cpio", "--list", "--quiet")
	cmd.Stdin = &b
	out, err := cmd.CombinedOutput()
	if want := "dev\ndev/console\ninit\nempty\nlink\nabcd\n"; err != nil || string(out) != want {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestBadNames(t *testing.T) {
	for _, name := range []string{"", "/abs", "a\x00b", trailer, strings.Repeat("x", maxName)} {
		if err := Write(&bytes.Buffer{}, []Entry{{Name: name}}); err == nil {
			t.Errorf("%.20q was taken", name)
		}
	}
}

var errFull = errors.New("full")

type full struct{ left int }

func (f *full) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriteError(t *testing.T) {
	for _, left := range []int{0, 4096, 300_000} {
		if err := Write(&full{left}, tree()); err == nil {
			t.Errorf("a disk full after %d bytes went unnoticed", left)
		}
	}
}

func FuzzRead(f *testing.F) {
	var b bytes.Buffer
	_ = Write(&b, tree()[:4])
	f.Add(b.Bytes())
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, err := Read(bytes.NewReader(raw))
		if err != nil {
			return
		}
		total := 0
		for _, e := range list {
			total += len(e.Data)
		}
		if total > len(raw) {
			t.Errorf("%d bytes out of %d", total, len(raw))
		}
	})
}
