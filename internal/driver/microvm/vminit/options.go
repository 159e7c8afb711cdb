package vminit

import (
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"
)

// What the kernel command line may say of the channel.
const (
	Serial    = "serial" // a virtio-serial port named PortName
	Vsock     = "vsock"  // listen on VsockPort
	PortName  = "hearth"
	VsockPort = 1024
)

// options are what the kernel command line tells.
type options struct {
	layers  []string // devices, lowest first
	guest   string
	disk    string
	channel string
	program []string
	env     []string
}

// Argument encodes a list for the kernel command line, as hearth.NAME=a,b.
func Argument(name string, values []string) string {
	escaped := make([]string, len(values))
	for i, v := range values {
		escaped[i] = url.QueryEscape(v)
	}
	return "hearth." + name + "=" + strings.Join(escaped, ",")
}

var devicePattern = regexp.MustCompile(`^vd[a-z]{1,2}$`)

// parseOptions reads a kernel command line; what is not Hearth's is left alone.
func parseOptions(line string) (options, error) {
	var o options
	for word := range strings.FieldsSeq(line) {
		name, value, ok := strings.Cut(strings.TrimPrefix(word, "hearth."), "=")
		if !ok || !strings.HasPrefix(word, "hearth.") {
			continue
		}
		list, err := split(value)
		if err != nil {
			return o, fmt.Errorf("%s: %w", word, err)
		}
		switch name {
		case "layers":
			o.layers = list
		case "guest":
			o.guest = strings.Join(list, ",")
		case "disk":
			o.disk = strings.Join(list, ",")
		case "channel":
			o.channel = strings.Join(list, ",")
		case "init":
			o.program = list
		case "env":
			o.env = list
		}
	}
	return o, o.check()
}

func split(value string) ([]string, error) {
	if value == "" {
		return nil, nil
	}
	var list []string
	for s := range strings.SplitSeq(value, ",") {
		s, err := url.QueryUnescape(s)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

func (o options) check() error {
	devices := append([]string{o.disk}, o.layers...)
	if o.guest != "" {
		devices = append(devices, o.guest)
	}
	for _, d := range devices {
		if !devicePattern.MatchString(d) {
			return fmt.Errorf("%q is not the name of a disk", d)
		}
	}
	switch {
	case len(o.layers) == 0 || len(o.layers) > 64:
		return fmt.Errorf("%d layers, want 1 to 64", len(o.layers))
	case o.channel != Serial && o.channel != Vsock:
		return fmt.Errorf("channel %q is neither %s nor %s", o.channel, Serial, Vsock)
	case len(o.program) == 0 || !path.IsAbs(o.program[0]):
		return fmt.Errorf("the first program %q is not an absolute path", o.program)
	}
	return nil
}
