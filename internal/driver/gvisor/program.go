package gvisor

import (
	"fmt"
	"log/slog"
	"os"
	"sync"

	"hearth/internal/driver/gvisor/embedded"
)

// self is this program, whatever has become of its file.
const self = "/proc/self/exe"

// program is what launchers execute: the one that is embedded, or else this one, which
// does the same. The embedded one has the patches; a build without them uses itself.
type program struct {
	once sync.Once
	path string
	file *os.File // of the embedded one: kept open for as long as path is used
}

// find returns its path, which is not another's while p is there.
func (p *program) find(log *slog.Logger) string {
	p.once.Do(func() {
		if p.path != "" {
			return
		}
		p.path = self
		if !sharing {
			return
		}
		file, err := embedded.InMemory()
		if err != nil {
			log.Warn("sandboxes execute all of this program instead of the one for them", "err", err)
			return
		}
		// By our number: a child may have given its own descriptor another meaning.
		p.file, p.path = file, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd())
	})
	return p.path
}
