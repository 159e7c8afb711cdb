package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// filePatch is what a unified diff does to one file. Nothing is guessed when it
// is applied: every line must be where the patch says and as it says.
type filePatch struct {
	name    string
	created bool // the file must not be there
	hunks   []hunk
}

type hunk struct {
	start       int      // first line of the old file, from 1; 0 in an empty one
	before, now []string // with their line ends
}

// parse reads the output of git diff: changed and new text files, no others.
func parse(text string) ([]filePatch, error) {
	var list []filePatch
	lines := strings.SplitAfter(text, "\n")
	if n := len(lines) - 1; lines[n] == "" {
		lines = lines[:n]
	}
	for i := 0; i < len(lines); {
		line := lines[i]
		switch {
		case strings.HasPrefix(line, "--- "):
			p, err := parseNames(line, lines, i+1)
			if err != nil {
				return nil, err
			}
			list = append(list, p)
			i += 2
		case strings.HasPrefix(line, "@@ "):
			if len(list) == 0 {
				return nil, fmt.Errorf("line %d: a hunk of no file", i+1)
			}
			h, n, err := parseHunk(lines[i:])
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
			p := &list[len(list)-1]
			p.hunks = append(p.hunks, h)
			i += n
		case strings.HasPrefix(line, "diff "), strings.HasPrefix(line, "index "), strings.HasPrefix(line, "new file mode 100644"):
			i++
		default:
			return nil, fmt.Errorf("line %d is not understood: %.60q", i+1, line)
		}
	}
	return list, nil
}

// parseNames reads the two lines that name a file.
func parseNames(from string, lines []string, next int) (filePatch, error) {
	var p filePatch
	if next >= len(lines) || !strings.HasPrefix(lines[next], "+++ b/") {
		return p, fmt.Errorf("line %d: no name of the new file", next+1)
	}
	p.name = strings.TrimSpace(strings.TrimPrefix(lines[next], "+++ b/"))
	old := strings.TrimSpace(strings.TrimPrefix(from, "--- "))
	p.created = old == "/dev/null"
	if !filepath.IsLocal(p.name) || !p.created && old != "a/"+p.name {
		return p, fmt.Errorf("line %d: %q becomes %q", next, old, p.name)
	}
	return p, nil
}

// parseHunk reads a hunk and returns how many lines it takes.
func parseHunk(lines []string) (h hunk, n int, err error) {
	var oldCount, newStart, newCount int
	ranges := strings.SplitN(strings.TrimPrefix(lines[0], "@@ "), " @@", 2)[0]
	oldPart, newPart, ok := strings.Cut(ranges, " ")
	if !ok || !span(oldPart, '-', &h.start, &oldCount) || !span(newPart, '+', &newStart, &newCount) {
		return h, 0, fmt.Errorf("bad ranges %q", ranges)
	}
	for n = 1; len(h.before) < oldCount || len(h.now) < newCount; n++ {
		if n >= len(lines) {
			return h, n, fmt.Errorf("the hunk is cut short")
		}
		line := lines[n]
		switch line[0] {
		case ' ':
			h.before, h.now = append(h.before, line[1:]), append(h.now, line[1:])
		case '-':
			h.before = append(h.before, line[1:])
		case '+':
			h.now = append(h.now, line[1:])
		default:
			return h, n, fmt.Errorf("the hunk has a line %.60q", line)
		}
	}
	if len(h.before) != oldCount || len(h.now) != newCount {
		return h, n, fmt.Errorf("the hunk has %d and %d lines, not %d and %d", len(h.before), len(h.now), oldCount, newCount)
	}
	return h, n, nil
}

// span reads "-12,3" or "-12", which has one line.
func span(s string, sign byte, start, count *int) bool {
	if s == "" || s[0] != sign {
		return false
	}
	*count = 1
	if _, err := fmt.Sscanf(s[1:], "%d,%d", start, count); err == nil {
		return *start >= 0 && *count >= 0
	}
	_, err := fmt.Sscanf(s[1:], "%d", start)
	return err == nil && *start >= 0
}

// apply changes or makes the file below dir.
func (p filePatch) apply(dir string) error {
	path := filepath.Join(dir, p.name)
	if p.created {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := p.patched(string(old))
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

func (p filePatch) patched(old string) (string, error) {
	var out strings.Builder
	lines := strings.SplitAfter(old, "\n")
	if n := len(lines) - 1; lines[n] == "" {
		lines = lines[:n]
	}
	at := 0
	for _, h := range p.hunks {
		first := h.start - 1
		if len(h.before) == 0 {
			first = h.start
		}
		if first < at || first+len(h.before) > len(lines) {
			return "", fmt.Errorf("there is no line %d", h.start+len(h.before)-1)
		}
		for _, l := range lines[at:first] {
			out.WriteString(l)
		}
		for i, l := range h.before {
			if lines[first+i] != l {
				return "", fmt.Errorf("line %d is %.60q, not %.60q", first+i+1, lines[first+i], l)
			}
		}
		for _, l := range h.now {
			out.WriteString(l)
		}
		at = first + len(h.before)
	}
	for _, l := range lines[at:] {
		out.WriteString(l)
	}
	return out.String(), nil
}
