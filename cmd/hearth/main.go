// Command hearth is the whole product: server, command line, and what it starts by
// running itself again: gVisor sandboxes, pagers of Firecracker machines, and the
// launcher that becomes a QEMU.
package main

import (
	"os"

	"hearth/internal/cli"
	"hearth/internal/driver/firecracker"
	"hearth/internal/driver/gvisor"
	"hearth/internal/driver/qemu"
)

// version is stamped by the build.
var version = "dev"

func main() {
	if gvisor.Main(os.Args) || firecracker.Main(os.Args) || qemu.Main(os.Args) {
		return
	}
	os.Exit(cli.Main(os.Args[1:], version, os.Stdout, os.Stderr))
}
