package bench

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/bench/stock"
	"hearth/internal/config"
	"hearth/internal/hearth"
)

func TestChooseStock(t *testing.T) {
	text := filepath.Join(t.TempDir(), stockName)
	if p, err := chooseStock("", text); err != nil || p != (stock.Program{}) {
		t.Errorf("there is none: got %+v, %v", p, err)
	}
	if _, err := chooseStock(text, ""); hearth.KindOf(err) != hearth.InvalidArgument {
		t.Errorf("the one that is named is missing: got %v", err)
	}
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tc := range [][2]string{{text, ""}, {"", text}} {
		if _, err := chooseStock(tc[0], tc[1]); hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: got %v", tc, err)
		}
	}
}

func TestRunRefusesAnotherStock(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	c := config.Default()
	c.Data = t.TempDir()
	o := valid()
	o.Stock = "/etc/hostname"
	err := Run(t.Context(), &c, o, io.Discard, io.Discard)
	if hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), "stock: /etc/hostname") {
		t.Errorf("got %v", err)
	}
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestOneReferenceWithoutAPublishedGvisor(t *testing.T) {
	var r references
	if list := r.programs(); len(list) != 1 || list[0] != r.first {
		t.Errorf("got %+v", list)
	}
	if list := r.samples("ms", "restore"); len(list) != 1 || strings.Contains(list[0].Figure().Name, "published") {
		t.Errorf("got %+v", list[0].Figure())
	}
}

func TestACheckpointThatWasNotMadeIsMissed(t *testing.T) {
	none := errors.New("no room")
	published := stock.Program{File: "/p", Version: "v1"}
	r := &run{refs: references{first: published, warm: map[origin]stock.Template{}, missing: none}}
	if list := r.refs.programs(); len(list) != 2 || list[0] != published || list[1] != (stock.Program{}) {
		t.Errorf("programs: got %+v", list)
	}
	made := origin{published, baseTemplate}
	r.refs.warm[made] = stock.Template{Layer: "/l"}
	if w, err := r.template(t.Context(), made); err != nil || w.Layer != "/l" {
		t.Errorf("one that was made: got %+v, %v", w, err)
	}
	// It is never replaced by one of this build.
	if _, err := r.template(t.Context(), origin{published, codeTemplate}); !errors.Is(err, none) {
		t.Errorf("one that was not: got %v", err)
	}
}

func TestRowsThatRestore(t *testing.T) {
	for want, lists := range map[bool][][]string{
		true:  {nil, {"4"}, {"1", "11"}, {"8"}},
		false: {{"1"}, {"8b", "14"}, {"16"}},
	} {
		for _, rows := range lists {
			if got := (Options{Rows: rows}).restores(); got != want {
				t.Errorf("%v: got %t", rows, got)
			}
		}
	}
}
