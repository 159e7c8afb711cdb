package image

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPackagesCannotTakeTheHost runs what a hostile package would, where
// packages are installed.
func TestPackagesCannotTakeTheHost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	root := t.TempDir()
	for _, d := range []string{"usr", "proc", "dev", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+d, filepath.Join(root, d)); err != nil {
			t.Fatal(err)
		}
	}
	const script = `touch /tmp/mine && chown 1000 /tmp/mine && echo works
(echo x >/proc/sys/kernel/core_pattern) 2>/dev/null && echo settings
mount -t tmpfs none /tmp 2>/dev/null && echo mount
mount -o remount,bind,rw /proc 2>/dev/null && echo remount
mknod /tmp/mem c 1 1 2>/dev/null && echo device
mkdir -p /tmp/d && chroot /tmp/d /usr/bin/true 2>/dev/null; chroot / true 2>/dev/null && echo chroot
unshare --user true 2>/dev/null && echo namespace
ls -d /proc/[0-9]* | wc -l | { read -r n; [ "$n" -lt 10 ] || echo processes; }
grep CapEff /proc/self/status`
	var out bytes.Buffer
	err := run(context.Background(), command{
		name: "bash", pkg: "bash", args: []string{"-c", `mount --bind /usr "$0/usr" && ` + enterRoot, root, "/bin/bash", "-c", script},
		alone: offline, stdout: &out, env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(strings.Fields(out.String()), " "); got != "works CapEff: 000000000000001b" {
		t.Errorf("as a package: %s", got)
	}
}
