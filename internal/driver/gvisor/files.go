package gvisor

import (
	"context"

	"gvisor.dev/gvisor/pkg/sentry/checkpoint"
	"gvisor.dev/gvisor/runsc/sandbox"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// filesCheckpoint are the files that gVisor writes of the root file system alone:
// what is in it, a tar of everything but contents, and the contents as pages.
var filesCheckpoint = [...]string{"fscheckpoint.pb", "multitar.img", "pages_meta.img", pagesFile}

// CheckpointFiles writes what the frozen machine has changed on its root.
func (m *machine) CheckpointFiles(ctx context.Context, dir string) (*driver.Checkpoint, error) {
	c := &driver.Checkpoint{Driver: Name, Key: m.state.Key, Dir: dir, Files: append(filesCheckpoint[:], manifestFile), FilesOnly: true}
	err := m.control(ctx, "checkpoint of files", func() error {
		if !m.frozen {
			return hearth.Errorf(hearth.FailedPrecondition, "machine %s is not frozen", m.id)
		}
		man, err := m.manifest()
		if err != nil {
			return err
		}
		root := sandbox.FSSaveOpts{Paths: []checkpoint.ResourceID{{Path: "/"}}}
		if err := m.box.FSSave(m.d.conf, m.id, dir, root); err != nil {
			return err
		}
		return man.write(dir, filesCheckpoint[:]...)
	})
	if err != nil {
		return nil, diskFull(m.id, err)
	}
	return c, nil
}
