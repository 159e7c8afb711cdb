package main

import (
	"errors"
	"fmt"
	"strings"
)

// mark begins the lines with which command init tells what it does:
//
//	HEARTH-KVM begin NAME
//	HEARTH-KVM end NAME ok|failed WHY
//	HEARTH-KVM done
const mark = "HEARTH-KVM "

// judge listens to the console of the emulated host.
type judge struct {
	want    []string // suites, in order
	running string
	ended   map[string]string // "ok", or what went wrong
	passed  map[string]int    // tests of each suite
	skipped []string          // tests, with the reason
	test    string            // whose lines come now
	said    map[string]string // what each test said last: of one that is skipped, the reason
	done    bool
	last    []string // of the console, outside of suites: what explains a crash
}

func newJudge(want []string) *judge {
	return &judge{want: want, ended: map[string]string{}, passed: map[string]int{}, said: map[string]string{}}
}

// hear takes one line and returns what of it a person wants to see.
func (j *judge) hear(line string) (string, bool) {
	line = strings.TrimRight(line, "\r\n")
	if at := strings.Index(line, mark); at >= 0 { // a kernel message may have begun the line
		return j.note(strings.Fields(line[at+len(mark):]))
	}
	if j.running == "" {
		const kept = 20
		j.last = append(j.last, line)
		j.last = j.last[max(0, len(j.last)-kept):]
		return "", false
	}
	text := strings.TrimSpace(line)
	if strings.HasPrefix(text, "--- PASS: ") {
		j.passed[j.running]++
	}
	j.listen(text)
	for _, noise := range []string{"=== PAUSE", "=== CONT", "=== NAME"} {
		if strings.HasPrefix(text, noise) {
			return "", false
		}
	}
	return line, text != ""
}

// listen keeps what tests say: their verdicts come after those of all within one test.
func (j *judge) listen(text string) {
	for _, prefix := range []string{"=== RUN", "=== CONT", "=== NAME"} {
		if name, ok := strings.CutPrefix(text, prefix); ok {
			j.test = strings.TrimSpace(name)
			return
		}
	}
	if verdict, ok := strings.CutPrefix(text, "--- SKIP: "); ok {
		name, _, _ := strings.Cut(verdict, " ")
		j.skipped = append(j.skipped, fmt.Sprintf("%s: %s: %s", j.running, name, j.said[j.running+name]))
		return
	}
	if !strings.HasPrefix(text, "--- ") {
		j.said[j.running+j.test] = text
	}
}

func (j *judge) note(words []string) (string, bool) {
	switch {
	case len(words) == 2 && words[0] == "begin":
		j.running = words[1]
		return "==> " + words[1], true
	case len(words) >= 3 && words[0] == "end":
		j.running = ""
		j.ended[words[1]] = strings.Join(words[2:], " ")
		return fmt.Sprintf("<== %s: %s, %d passed", words[1], j.ended[words[1]], j.passed[words[1]]), true
	case len(words) == 1 && words[0] == "done":
		j.done = true
	}
	return "", false
}

// failed returns the suites that did not run to their end and pass.
func (j *judge) failed() (names []string) {
	for _, name := range j.want {
		if j.ended[name] != "ok" || j.passed[name] == 0 {
			names = append(names, name)
		}
	}
	return names
}

// verdict is nil if every suite ran to its end and passed, and the host went off
// by itself.
func (j *judge) verdict() error {
	var errs []error
	for _, name := range j.want {
		switch end, ok := j.ended[name]; {
		case !ok && j.running == name:
			errs = append(errs, fmt.Errorf("suite %s did not end: the emulated host crashed or hung", name))
		case !ok:
			errs = append(errs, fmt.Errorf("suite %s did not run", name))
		case end != "ok":
			errs = append(errs, fmt.Errorf("suite %s %s", name, end))
		case j.passed[name] == 0:
			errs = append(errs, fmt.Errorf("suite %s passed without a test", name))
		}
	}
	if !j.done {
		errs = append(errs, fmt.Errorf("the emulated host did not come to its end; its last words:\n\t%s", strings.Join(j.last, "\n\t")))
	}
	return errors.Join(errs...)
}
