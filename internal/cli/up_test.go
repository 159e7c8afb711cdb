package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"hearth/internal/app"
	"hearth/internal/config"
)

func TestExitCodeOfTheDetached(t *testing.T) {
	var said bytes.Buffer
	if code := exitCode(&said, &failure{"the port is in use", exitBusy}); code != exitBusy {
		t.Errorf("got %d, want the other process's %d", code, exitBusy)
	}
	if said.String() != "hearth: the port is in use\n" {
		t.Errorf("said %q", said.String())
	}
	if code := exitCode(&said, &failure{"killed", -1}); code != exitFailed {
		t.Errorf("got %d, want %d for a signal", code, exitFailed)
	}
}

// A server that refuses to start leaves no log and no directory, unless they
// were there or it has used them.
func TestUnmaker(t *testing.T) {
	for _, tc := range []struct {
		name          string
		before, after []string // files before the start and by the server
		dir           bool     // whether the directory is there before
		left          []string
		dirLeft       bool
	}{
		{name: "nothing was there"},
		{name: "the directory was there", dir: true, dirLeft: true},
		{name: "the log was there", dir: true, before: []string{app.LogFile}, left: []string{app.LogFile}, dirLeft: true},
		{name: "the server used it", after: []string{app.LockFile}, left: []string{app.LogFile, app.LockFile}, dirLeft: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &config.Config{Data: filepath.Join(t.TempDir(), "d")}
			touch := func(names ...string) {
				for _, n := range names {
					if err := os.MkdirAll(c.Data, 0o700); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(statePath(c, n), nil, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			if tc.dir {
				if err := os.Mkdir(c.Data, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			touch(tc.before...)
			unmake := unmaker(c)
			touch(app.LogFile)
			touch(tc.after...)
			unmake()
			for _, n := range []string{app.LogFile, app.LockFile} {
				_, err := os.Stat(statePath(c, n))
				want := false
				for _, l := range tc.left {
					want = want || l == n
				}
				if (err == nil) != want {
					t.Errorf("%s: %v, want there: %t", n, err, want)
				}
			}
			if _, err := os.Stat(c.Data); (err == nil) != tc.dirLeft {
				t.Errorf("directory: %v, want there: %t", err, tc.dirLeft)
			}
		})
	}
}
