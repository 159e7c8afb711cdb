package gvisor

import (
	"context"
	"os"
	"path/filepath"

	"gvisor.dev/gvisor/runsc/specutils"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// upperFile is a tar of what a machine has changed on its root, deletions
// included, as gVisor writes it from a frozen machine and reads it at a boot. (Its
// own checkpoints of file systems want the changes in a file on the host; ours
// are in memory.)
const upperFile = "upper.tar"

// CheckpointFiles writes what the frozen machine has changed on its root.
func (m *machine) CheckpointFiles(ctx context.Context, dir string) (*driver.Checkpoint, error) {
	err := m.control(ctx, "checkpoint of files", func() error {
		if !m.frozen {
			return hearth.Errorf(hearth.FailedPrecondition, "machine %s is not frozen", m.id)
		}
		man, err := m.manifest()
		if err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join(dir, upperFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := m.box.TarRootfsUpperLayer(m.id, f); err != nil {
			return err
		}
		return man.write(dir, upperFile)
	})
	if err != nil {
		return nil, diskFull(m.id, err)
	}
	return &driver.Checkpoint{Driver: Name, Key: m.state.Key, Dir: dir, Files: []string{upperFile, manifestFile}, FilesOnly: true}, nil
}

// filesOf tells gVisor with which changes of the root to boot.
func filesOf(annotations map[string]string, from *driver.Checkpoint) {
	if from != nil && from.FilesOnly {
		annotations[specutils.AnnotationRootfsUpperTar] = filepath.Join(from.Dir, upperFile)
	}
}
