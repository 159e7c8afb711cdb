package image

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hearth/internal/hearth"
)

func TestDebianSources(t *testing.T) {
	got := debianSources(strings.Join([]string{
		"http://mirror.test/debian/|bookworm|main|Debian|amd64|",
		"http://mirror.test/debian/|bookworm|contrib|Debian|amd64|",
		"http://mirror.test/debian/|bookworm|main|Debian|i386|",
		"http://mirror.test/debian/|bookworm-backports|main|Debian|amd64|",
		"http://mirror.test/debian/|trixie|main|Debian|amd64|",
		"http://u:p@mirror.test/security/|bookworm-security|main||amd64|",
		"http://vendor.test/apt/|bookworm|main|Vendor|amd64|",
		"http://vendor.test/apt/|bookworm|stable||amd64|",
		"nonsense",
	}, "\n"), "bookworm", "amd64")
	h := &aptHost{codename: "bookworm", sources: got}
	want := "deb http://mirror.test/debian/ bookworm main contrib\ndeb http://u:p@mirror.test/security/ bookworm-security main\n"
	if h.list() != want {
		t.Errorf("got\n%swant\n%s", h.list(), want)
	}
	if in := h.inside(); strings.Contains(in, "u:p@") || !strings.Contains(in, "http://mirror.test/security/") {
		t.Errorf("a sandbox sees\n%s", in)
	}
}

func TestSignedBy(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "key.gpg")
	file := filepath.Join(dir, "x.sources")
	for name, text := range map[string]string{key: "k", file: "Types: deb\nSigned-By: " + key + "\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := signedBy(file + ":1"); !slices.Equal(got, []string{key}) {
		t.Errorf("deb822: %v", got)
	}
	if err := os.WriteFile(file, []byte("deb [arch=amd64 signed-by="+key+",/missing] http://mirror.test x main\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := signedBy(file + ":1"); !slices.Equal(got, []string{key}) {
		t.Errorf("one line: %v", got)
	}
	if got := signedBy("relative:1"); got != nil {
		t.Errorf("%v", got)
	}
}

func TestAcquireOptions(t *testing.T) {
	got := acquireOptions(`Acquire "";
Acquire::http::Proxy "http://proxy.test:3128";
Acquire::https::CaInfo "/etc/ssl/ca.pem";
Acquire::IndexTargets::deb::Packages::MetaKey "x";
Acquire::Check-Valid-Until "false";
Acquire::cdrom::mount "/media/cdrom/";
Acquire::http "";
`)
	want := []string{`Acquire::http::Proxy "http://proxy.test:3128";`, `Acquire::https::CaInfo "/etc/ssl/ca.pem";`, `Acquire::Check-Valid-Until "false";`}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestOtherHostsAreRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "os-release")
	if err := os.WriteFile(file, []byte("ID=\"fedora\"\nVERSION_ID=44\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := NewDebian(NewCache(t.TempDir()), DebianSpec{Packages: []string{"bash"}})
	if err != nil {
		t.Fatal(err)
	}
	d.release = file
	if _, err := d.Key(t.Context()); hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), "fedora") {
		t.Errorf("error %v", err)
	}
}

func TestDebianSpecIsChecked(t *testing.T) {
	for field, spec := range map[string]DebianSpec{
		"packages":  {Packages: []string{"--simulate"}},
		"packages:": {Packages: []string{"a b"}},
		"python":    {Packages: []string{"python3-pip"}, Python: []string{"--index-url=http://evil.test"}},
		"python:":   {Packages: []string{"python3-pip"}, Python: []string{"x @ http://evil.test/x.whl"}},
		"python: p": {Python: []string{"numpy"}},
		"drop":      {Drop: []string{"$(reboot)"}},
		"files":     {Files: map[string]string{"/etc/../x": ""}},
		"files:":    {Files: map[string]string{"relative": ""}},
	} {
		_, err := NewDebian(NewCache(t.TempDir()), spec)
		if hearth.KindOf(err) != hearth.InvalidArgument || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	for _, good := range []string{"numpy", "pandas>=2.2,<3", "uvicorn[standard]", "x==1.2.*", "ipykernel~=6.31"} {
		if !pythonSpecRE().MatchString(good) {
			t.Errorf("%q was refused", good)
		}
	}
}
