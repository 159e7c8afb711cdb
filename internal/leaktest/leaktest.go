// Package leaktest looks for goroutines that a package's tests leave behind.
package leaktest

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is for goroutines that end by themselves, behind the test that began them:
// on a busy host that takes longer than the half second that goleak gives them.
const patience = time.Minute

// Main is what a TestMain calls: it runs the tests and exits, with a failure if a
// goroutine is left.
func Main(m *testing.M, options ...goleak.Option) {
	code := m.Run()
	if code == 0 {
		err := goleak.Find(options...)
		for end := time.Now().Add(patience); err != nil && time.Now().Before(end); {
			err = goleak.Find(options...)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left:", err)
			code = 1
		}
	}
	os.Exit(code)
}
