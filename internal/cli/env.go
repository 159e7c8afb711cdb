package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"hearth/internal/app"
	"hearth/internal/config"
	"hearth/internal/hearth"
)

type envCmd struct{ dataFlag }

// Run prints shell lines, fit for eval.
func (e *envCmd) Run(in *invocation) error {
	c, err := e.load(in)
	if err != nil {
		return err
	}
	a, err := readAccess(c)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(in.out, "export E2B_API_KEY=%s\nexport E2B_API_URL=%s\nexport E2B_SANDBOX_URL=%s\n", a.key, a.url, a.url)
	return err
}

// access is how a program on this host reaches the server.
type access struct{ key, url string }

// readAccess reads what `hearth up` left in the data directory.
func readAccess(c *config.Config) (access, error) {
	key, err := os.ReadFile(statePath(c, app.KeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return access{}, hearth.Errorf(hearth.NotFound, "no server has run on %s; start one with `hearth up`, or name its directory with --data", c.Data)
	}
	if err != nil {
		return access{}, hearth.Wrap(hearth.PermissionDenied, err, "%s cannot be read", statePath(c, app.KeyFile))
	}
	addr := c.Listen
	if raw, err := os.ReadFile(statePath(c, app.AddressFile)); err == nil {
		addr = strings.TrimSpace(string(raw))
	}
	return access{key: strings.TrimSpace(string(key)), url: app.URL(addr)}, nil
}
