// Command badinit is a first process of machines that misbehaves, in the way
// that mode says; the driver's tests set it when they build it.
package main

import (
	"os"
	"time"
)

var mode = "silent"

func main() {
	switch mode {
	case "silent":
		<-time.After(time.Hour)
	case "flood":
		line := make([]byte, 4096)
		for i := range line {
			line[i] = 'x'
		}
		for {
			_, _ = os.Stdout.Write(line)
		}
	} // else it ends, of which the kernel dies
}
