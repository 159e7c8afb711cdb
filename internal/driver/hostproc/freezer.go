package hostproc

import (
	"errors"
	"io/fs"
)

// Freeze stops the processes of the group where they are, soon after it returns.
// With version 1 a frozen process does not even die: whoever kills one calls Thaw
// before, as Remove does. A host without a freezer is an error that wraps
// fs.ErrNotExist.
func (c Cgroup) Freeze() error { return c.freezer("FROZEN", "1") }

// Thaw lets them go on. It is no error when the group is not there, or not frozen.
func (c Cgroup) Thaw() error {
	if err := c.freezer("THAWED", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (c Cgroup) freezer(state, unified string) error {
	if c.unified {
		return control(c.file("", "cgroup.freeze"), unified)
	}
	return control(c.file("freezer", "freezer.state"), state)
}
