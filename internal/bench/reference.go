package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"hearth/client"
	"hearth/internal/bench/figure"
	"hearth/internal/bench/stock"
	"hearth/internal/blob/fileblob"
	"hearth/internal/guest"
	"hearth/internal/node/agent/shelf"
)

// stockName is the program beside this one that `make bench` builds with the
// published gVisor.
const stockName = "hearth-stock"

// references are what the rows' own figures are measured against: machines of the
// same templates, made by gVisor's command line.
type references struct {
	// first is the program that targets are held against: one with the published
	// gVisor, when there is one, else this program.
	first stock.Program
	maker *stock.Maker // nil until a machine is made
	// warm is what the templates' sandboxes are made of.
	warm map[origin]stock.Template
	// missing is why the published program has made no checkpoints.
	missing error
}

// origin is what a stock machine is made from.
type origin struct {
	program  stock.Program
	template string
}

// programs lists the programs of references, that of the target first.
func (r *references) programs() []stock.Program {
	if own := (stock.Program{}); r.first != own {
		return []stock.Program{r.first, own}
	}
	return []stock.Program{r.first}
}

// chooseStock finds the program of the references: the one that was named, or the
// one beside this program, if there is one.
func chooseStock(named, beside string) (stock.Program, error) {
	if named != "" {
		return stock.Published(named)
	}
	if _, err := os.Stat(beside); err != nil {
		return stock.Program{}, nil
	}
	return stock.Published(beside)
}

// besideSelf is where a program of the references is looked for.
func besideSelf() string {
	path, err := os.Executable()
	if err != nil {
		return ""
	}
	return filepath.Join(filepath.Dir(path), stockName)
}

// samples of a reference are named and explained by its program.
func samples(p stock.Program, unit, what string) *figure.Samples {
	s := figure.In(unit, p.Name()+": "+what)
	s.Explain(p.Note())
	return s
}

// samples are those of each program, of the same thing.
func (r *references) samples(unit, what string) (list []*figure.Samples) {
	for _, p := range r.programs() {
		list = append(list, samples(p, unit, what))
	}
	return list
}

// sums are the figures of all of them.
func sums(list []*figure.Samples) (all []figure.Figure) {
	for _, s := range list {
		all = append(all, s.Figure())
	}
	return all
}

// restores says of which rows the references are restored from checkpoints.
func (o Options) restores() bool {
	return len(o.Rows) == 0 || slices.ContainsFunc(o.Rows, func(row string) bool {
		return slices.Contains([]string{"3", "4", "6", "8", "10", "11"}, row)
	})
}

// writePublished has the published program make the templates' checkpoints, in a
// server of its own that is gone before anything is measured.
func (r *run) writePublished(ctx context.Context) (err error) {
	if r.refs.first == (stock.Program{}) || !r.opts.restores() {
		return nil
	}
	r.say("the templates' checkpoints by the published gVisor")
	c := r.config("published")
	c.Node.Pool, c.Node.PoolMax, c.Node.Blanks = 0, 0, 0
	s := r.newServer(c, r.refs.first.File, poolEmpty)
	defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx))) }()
	if err := s.start(ctx, r.progress); err != nil {
		return err
	}
	if err := s.connect(); err != nil {
		return err
	}
	for _, t := range c.Builtin {
		of := origin{r.refs.first, t}
		if r.refs.warm[of], err = r.take(ctx, s, of); err != nil {
			return err
		}
	}
	return nil
}

// template finds out what a template's reference is made of.
func (r *run) template(ctx context.Context, of origin) (stock.Template, error) {
	if w, ok := r.refs.warm[of]; ok {
		return w, nil
	}
	if of.program != (stock.Program{}) {
		return stock.Template{}, fmt.Errorf("the published gVisor made no checkpoint: %w", r.refs.missing)
	}
	w, err := r.take(ctx, r.server, of)
	if err == nil {
		r.refs.warm[of] = w
	}
	return w, err
}

// take finds out what a server makes a template's sandboxes of, by making one, and
// lays the checkpoint down where it outlives the server.
func (r *run) take(ctx context.Context, s *server, of origin) (w stock.Template, err error) {
	sb, err := s.client.Create(ctx, client.CreateOptions{Template: of.template, Timeout: life})
	if err != nil {
		return w, err
	}
	defer r.kill(ctx, sb)
	m, err := s.of(sb.ID)
	if err != nil {
		return w, err
	}
	w = stock.Template{Program: of.program, Resources: m.Resources}
	if w.Layer, err = rootImage(m.Handle.Dir); err != nil {
		return w, err
	}
	snapshots := shelf.New(fileblob.View(filepath.Join(s.cfg.Data, "blobs")))
	snap, _, err := snapshots.Find(ctx, m.Restored)
	if err != nil {
		return w, err
	}
	dir, err := os.MkdirTemp(r.dir, "from-"+of.template+"-")
	if err != nil {
		return w, err
	}
	w.From, err = snapshots.Lay(ctx, snap, dir)
	return w, err
}

// prepare does all for a stock machine but to start it.
func (r *run) prepare(ctx context.Context, of origin) (*stock.Machine, error) {
	w, err := r.template(ctx, of)
	if err != nil {
		return nil, err
	}
	if r.refs.maker == nil {
		if r.refs.maker, err = stock.New(ctx, r.server.cfg, filepath.Join(r.dir, "stock")); err != nil {
			return nil, err
		}
	}
	m, err := r.refs.maker.Prepare(ctx, w)
	if err != nil && of.program != (stock.Program{}) {
		err = fmt.Errorf("%w (is %s of the same tree as this program? `make bench` builds both)", err, of.program.File)
	}
	return m, err
}

// rootImage reads from a machine's bundle which image its root is.
func rootImage(dir string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "config.json"))
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
