package code

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	python     = "python"
	javascript = "javascript"
)

const maxLanguage = 64 // bytes in a language name

// normalise maps what callers write to the name of a kernel's language and the
// name reported back for the context.
func normalise(language string) (kernel, reported string) {
	l := strings.ToLower(strings.TrimSpace(language))
	switch l {
	case "", "python3":
		return python, python
	case "js":
		return javascript, javascript
	case "ts", "typescript":
		return javascript, "typescript"
	}
	return l, l
}

func validLanguage(name string) bool {
	if name == "" || len(name) > maxLanguage {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || strings.ContainsRune("+-_.#", r))
	})
}

// dialect is how a language that is not our own Python sets what a cell needs.
type dialect struct {
	set    func(name, value string) string
	unset  func(name string) string
	chdir  func(dir string) string
	reseed string
}

// dialectOf returns the snippets of a language; ok is false when none are known, and
// contexts of that language run without environment and working directory.
func dialectOf(language string) (d dialect, ok bool) {
	switch language {
	case javascript:
		return dialect{
			set:   func(n, v string) string { return fmt.Sprintf("process.env[%s] = %s", quoted(n), quoted(v)) },
			unset: func(n string) string { return fmt.Sprintf("delete process.env[%s]", quoted(n)) },
			chdir: func(p string) string { return fmt.Sprintf("process.chdir(%s)", quoted(p)) },
		}, true
	case "r", "ir":
		return dialect{
			set: func(n, v string) string {
				return fmt.Sprintf("do.call(Sys.setenv, setNames(list(%s), %s))", quoted(v), quoted(n))
			},
			unset:  func(n string) string { return fmt.Sprintf("Sys.unsetenv(%s)", quoted(n)) },
			chdir:  func(p string) string { return fmt.Sprintf("setwd(%s)", quoted(p)) },
			reseed: "set.seed(NULL)",
		}, true
	case "java":
		return dialect{
			set:   func(n, v string) string { return fmt.Sprintf("System.setProperty(%s, %s);", quoted(n), quoted(v)) },
			unset: func(n string) string { return fmt.Sprintf("System.clearProperty(%s);", quoted(n)) },
			chdir: func(p string) string { return fmt.Sprintf("System.setProperty(\"user.dir\", %s);", quoted(p)) },
		}, true
	case "bash":
		return dialect{
			set:    func(n, v string) string { return "export " + n + "=" + single(v) },
			unset:  func(n string) string { return "unset " + n },
			chdir:  func(p string) string { return "cd -- " + single(p) },
			reseed: "RANDOM=$(od -An -N2 -tu2 /dev/urandom)",
		}, true
	}
	return dialect{}, false
}

// quoted is a string literal of languages that follow C.
func quoted(s string) string {
	b, _ := json.Marshal(s) // a string always has a form
	return string(b)
}

// single is a shell word.
func single(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// cover is the code that sets variables, in a fixed order.
func (d dialect) cover(env map[string]string) []string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(env)) {
		lines = append(lines, d.set(name, env[name]))
	}
	return lines
}

// restore is the code that takes env back to what global says.
func (d dialect) restore(env, global map[string]string) []string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if value, ok := global[name]; ok {
			lines = append(lines, d.set(name, value))
		} else {
			lines = append(lines, d.unset(name))
		}
	}
	return lines
}
