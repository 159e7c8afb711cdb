package store_test

import (
	"testing"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

func FuzzParseCursor(f *testing.F) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 89, time.UTC)
	f.Add(store.Position{At: at, ID: "iabc"}.Cursor())
	f.Add(store.Position{At: at, ID: "iabc", Asc: true}.Cursor())
	f.Add(store.Position{ID: "i"}.Cursor())
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		pos, err := store.ParseCursor(s)
		if err != nil {
			if hearth.KindOf(err) != hearth.InvalidArgument {
				t.Errorf("kind %s", hearth.KindOf(err))
			}
			return
		}
		again, err := store.ParseCursor(pos.Cursor())
		if err != nil || again != pos {
			t.Errorf("%+v became %+v (%v)", pos, again, err)
		}
	})
}

func TestPageSize(t *testing.T) {
	for limit, want := range map[int]int{-1: 100, 0: 100, 1: 1, 1000: 1000, 1001: 1000} {
		if got := (store.Page{Limit: limit}).Size(); got != want {
			t.Errorf("limit %d: size %d, want %d", limit, got, want)
		}
	}
}
