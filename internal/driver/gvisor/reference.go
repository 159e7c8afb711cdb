package gvisor

import (
	"os"
	"slices"
	"strings"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// Reference prepares what gVisor's own command line needs to make the machine
// that Start would make of spec, and returns that command line: PROGRAM with
// these arguments boots or restores it in one blocking step, detached, with
// plain gVisor's start-up. It is what benchmarks compare Start with. A checkpoint
// may also be one that the same version of gVisor wrote as it is published: PROGRAM
// is then a build with that. Sweep removes the machine and what was prepared, also
// when it never ran.
func (d *Driver) Reference(spec driver.Spec) ([]string, error) {
	if err := d.checkSpec(spec); err != nil {
		return nil, err
	}
	format := pageFormat
	if spec.From != nil && !strings.Contains(spec.From.Key, pageFormat) {
		format = publishedFormat
	}
	from, err := d.originBy(spec, func() (string, error) { return checkpointKey(format) })
	if err != nil {
		return nil, err
	}
	if len(from.layers) > 1 {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "gVisor's own command line cannot restore a checkpoint that refers to another")
	}
	if err := os.MkdirAll(d.cfg.Root, 0o711); err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "gvisor root cannot be made")
	}
	firstUID, err := d.uids.Take(spec.ID)
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "no range of user IDs can be reserved")
	}
	if err := writeBundle(spec.Dir, d.ociSpec(spec, from.guest, firstUID)); err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "machine's directory cannot be written")
	}
	flags := d.cfg.flags()
	if spec.Net.NetNS == "" {
		flags = withoutNetwork(flags)
	}
	bundle := "--bundle=" + spec.Dir
	if spec.From == nil {
		return slices.Concat([]string{"runsc"}, flags, []string{"run", "--detach", bundle, spec.ID}), nil
	}
	return slices.Concat([]string{"runsc"}, flags,
		[]string{"restore", "--detach", bundle, "--image-path=" + spec.From.Dir, spec.ID}), nil
}
