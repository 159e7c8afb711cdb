// Command summary reads `go test -json` from standard input and prints what a
// person needs: a line per package, the output of what failed, the name and
// reason of every skip, and the totals. It exits 1 when anything failed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

// event is one line of test2json's output.
type event struct {
	Action  string
	Package string
	Test    string
	Elapsed float64
	Output  string
}

type report struct {
	output         map[string][]string // of a package/test that has not ended
	passed, failed int
	blamed         map[string]bool // packages of which a test failed
	skips          []string
}

func main() {
	r := &report{output: map[string][]string{}, blamed: map[string]bool{}}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			fmt.Println(in.Text()) // a compiler's or linker's complaint
			continue
		}
		r.add(e)
	}
	slices.Sort(r.skips)
	for _, s := range r.skips {
		fmt.Println("skipped:", s)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", r.passed, r.failed, len(r.skips))
	if r.failed > 0 || in.Err() != nil {
		os.Exit(1)
	}
}

func (r *report) add(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		r.output[key] = append(r.output[key], e.Output)
		return
	case "pass":
		if e.Test != "" {
			r.passed++
		} else {
			fmt.Printf("ok    %-40s %6.1f s\n", e.Package, e.Elapsed)
		}
	case "skip":
		if e.Test != "" {
			r.skips = append(r.skips, e.Package+" "+e.Test+": "+reason(r.output[key]))
		}
	case "fail":
		r.fail(e, key)
	default:
		return
	}
	delete(r.output, key)
}

// fail prints what a failed test or package said. A package fails with its
// tests, so it counts by itself only when no test of it did.
func (r *report) fail(e event, key string) {
	fmt.Printf("FAIL  %s %s\n%s", e.Package, e.Test, strings.Join(r.output[key], ""))
	if e.Test != "" || !r.blamed[e.Package] {
		r.failed++
	}
	r.blamed[e.Package] = true
}

// reason is the last line a skipped test printed, without file and line.
func reason(output []string) string {
	for _, o := range slices.Backward(output) {
		o = strings.TrimSpace(o)
		if o == "" || strings.HasPrefix(o, "---") || strings.HasPrefix(o, "===") {
			continue
		}
		if _, after, ok := strings.Cut(o, ".go:"); ok {
			if _, text, ok := strings.Cut(after, ": "); ok {
				return text
			}
		}
		return o
	}
	return "no reason given"
}
