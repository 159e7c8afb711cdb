package hostproc

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Processor identifies the host's processor by its model and a digest of what
// it can do, for the keys of checkpoints.
func Processor() (model, features string, err error) {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", "", err
	}
	model, list := processor(string(cpuinfo))
	if list == "" {
		return "", "", errors.New("/proc/cpuinfo lists no features")
	}
	sum := sha256.Sum256([]byte(list))
	return model, hex.EncodeToString(sum[:6]), nil
}

// processor reads the first processor's identity and its sorted feature list.
func processor(cpuinfo string) (model, features string) {
	fields := map[string]string{}
	first, _, _ := strings.Cut(cpuinfo, "\n\n")
	for line := range strings.Lines(first) {
		name, value, _ := strings.Cut(line, ":")
		fields[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	flags := fields["flags"]
	if flags == "" {
		flags = fields["Features"] // arm64
	}
	list := strings.Fields(flags)
	slices.Sort(list)
	vendor := fields["vendor_id"]
	if vendor == "" {
		vendor = "implementer" + fields["CPU implementer"]
	}
	return fmt.Sprintf("%s-%s-%s", vendor, fields["cpu family"], fields["model"]), strings.Join(list, " ")
}
