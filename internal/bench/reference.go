package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"hearth/internal/bench/stock"
	"hearth/internal/blob/fileblob"
	"hearth/internal/guest"
	"hearth/internal/node/agent/shelf"
)

// references returns the maker of stock machines.
func (r *run) references(ctx context.Context) (*stock.Maker, error) {
	if r.stock == nil {
		m, err := stock.New(ctx, r.server.cfg, filepath.Join(r.dir, "stock"))
		if err != nil {
			return nil, err
		}
		r.stock, r.warm = m, map[string]stock.Template{}
	}
	return r.stock, nil
}

// learn finds out what a template's sandboxes are made of, by making one.
func (r *run) learn(ctx context.Context, template string) (stock.Template, error) {
	_, err := r.references(ctx)
	if err != nil {
		return stock.Template{}, err
	}
	if w, ok := r.warm[template]; ok {
		return w, nil
	}
	sb, err := r.create(ctx, template)
	if err != nil {
		return stock.Template{}, err
	}
	defer r.kill(ctx, sb)
	m, err := r.server.of(sb.ID)
	if err != nil {
		return stock.Template{}, err
	}
	w := stock.Template{Resources: m.Resources}
	if w.Layer, err = rootImage(m.Handle.Dir); err != nil {
		return w, err
	}
	snapshots := shelf.New(fileblob.View(filepath.Join(r.server.cfg.Data, "blobs")))
	snap, _, err := snapshots.Find(ctx, m.Restored)
	if err != nil {
		return w, err
	}
	dir := filepath.Join(r.dir, "stock", template)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return w, err
	}
	if w.From, err = snapshots.Lay(ctx, snap, dir); err != nil {
		return w, err
	}
	r.warm[template] = w
	return w, nil
}

// rootImage reads from a machine's bundle which image its root is.
func rootImage(dir string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "bundle", "config.json"))
	if err != nil {
		return "", err
	}
	var bundle struct{ Annotations map[string]string }
	if err := json.Unmarshal(raw, &bundle); err != nil {
		return "", err
	}
	image := bundle.Annotations["dev.gvisor.spec.rootfs.source"]
	if image == "" {
		return "", errors.New("the machine's bundle names no root image")
	}
	return image, nil
}

// stockCell runs the first cell of a stock machine.
func stockCell(ctx context.Context, m *stock.Machine) error {
	text, err := m.Do(ctx, http.MethodPost, guest.CodePort, "/execute", []byte(`{"code":"`+cellCode+`"}`))
	if err == nil && !strings.Contains(text, cellResult) {
		err = fmt.Errorf("first cell: %q: %w", text, errUnexpected)
	}
	return err
}
