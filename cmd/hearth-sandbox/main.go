// Command hearth-sandbox is the gVisor half of the product alone: what sandboxes are, and the
// launchers that make them. It is embedded in hearth and does what hearth does when that runs
// itself again, with half as much to load and to initialize for each, and nothing of the server in it. Built
// with gVisor as published it is the reference of benchmarks, `bin/hearth-stock`.
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
	fmt.Fprintln(os.Stderr, "usage: hearth-sandbox runsc ...")
	os.Exit(2)
}
