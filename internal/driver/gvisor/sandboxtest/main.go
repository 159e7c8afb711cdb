// Command sandboxtest is the gVisor half of the program alone. The driver's
// tests run their sandboxes with it, since a binary built for testing, with the
// race detector above all, is no sandbox.
package main

import (
	"fmt"
	"os"

	"hearth/internal/driver/gvisor"
)

func main() {
	if gvisor.Main(os.Args) {
		return
	}
	fmt.Fprintln(os.Stderr, "usage: sandboxtest runsc ...")
	os.Exit(2)
}
