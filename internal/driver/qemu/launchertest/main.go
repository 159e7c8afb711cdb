// Command launchertest is the launcher of machines alone. The driver's tests
// start their machines with it, since a binary built for testing, with the race
// detector above all, is no launcher.
package main

import (
	"fmt"
	"os"

	"hearth/internal/driver/qemu"
)

func main() {
	if qemu.Main(os.Args) {
		return
	}
	fmt.Fprintln(os.Stderr, "launchertest is started by tests")
	os.Exit(2)
}
