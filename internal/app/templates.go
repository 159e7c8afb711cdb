package app

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"hearth/internal/builder"
	"hearth/internal/config"
	"hearth/internal/hearth"
	"hearth/internal/image"
)

// recipes returns what the configuration wants made, built-in templates first.
func recipes(c *config.Config, cache *image.Cache) ([]builder.Recipe, error) {
	var list []builder.Recipe
	for _, name := range c.Builtin {
		r, err := builder.Builtin(name, cache)
		if err != nil {
			return nil, err
		}
		r.Driver = c.BuiltinDrivers[name]
		list = append(list, r)
	}
	for _, t := range c.Templates {
		src, err := source(t, cache)
		if err != nil {
			return nil, err
		}
		list = append(list, builder.Recipe{
			Name: t.Name, Source: src, Start: t.Start, Ready: t.Ready, Env: t.Env, User: t.User, Workdir: t.Workdir,
			Driver:    t.Driver,
			Resources: hearth.Resources{VCPUs: t.VCPUs, MemoryMiB: t.Memory, DiskMiB: t.Disk},
		})
	}
	return list, nil
}

// source picks the one source that Config.Validate has made sure of.
func source(t config.Template, cache *image.Cache) (image.Source, error) {
	switch {
	case t.Tar != "":
		return image.NewTarball(t.Tar, image.DefaultLimits()), nil
	case t.OCI != "":
		return image.NewLayout(t.OCI, image.DefaultLimits()), nil
	}
	packages, err := builder.BasePackages(cache)
	if err != nil {
		return nil, err
	}
	return image.NewDebian(cache, image.DebianSpec{Packages: slices.Concat(packages, t.Debian)})
}

// templateMaker is the part of the builder that makeTemplates uses.
type templateMaker interface {
	Ensure(ctx context.Context, team hearth.TeamID, r builder.Recipe, report func(builder.LogEntry)) (*hearth.Build, error)
}

// makeTemplates makes every template that is not there yet, and tells w what is
// going on. It fails with the first one that cannot be made.
func makeTemplates(ctx context.Context, b templateMaker, team hearth.TeamID, list []builder.Recipe, w io.Writer) error {
	began := time.Now()
	var mu sync.Mutex // one line at a time
	g, ctx := errgroup.WithContext(ctx)
	for _, r := range list {
		g.Go(func() error {
			_, err := b.Ensure(ctx, team, r, func(e builder.LogEntry) {
				if e.Level == "debug" {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				fmt.Fprintf(w, "[%3.0f s] template %s: %s\n", time.Since(began).Seconds(), r.Name, e.Message)
			})
			if err != nil {
				return hearth.Wrap(hearth.KindOf(err), err, "template %s cannot be made", r.Name)
			}
			return nil
		})
	}
	return g.Wait()
}
