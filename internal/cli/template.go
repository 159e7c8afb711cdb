package cli

import (
	"cmp"
	"fmt"
	"strings"
	"text/tabwriter"
)

type templateCmd struct {
	List templateListCmd `cmd:"" help:"List templates."`
}

type templateListCmd struct{ dataFlag }

// Run prints a table.
func (t *templateListCmd) Run(in *invocation) error {
	c, err := t.server(in)
	if err != nil {
		return err
	}
	list, err := c.Templates(in.ctx)
	if err != nil {
		return remote(err)
	}
	w := tabwriter.NewWriter(in.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tID\tSTATUS\tVCPUS\tMEMORY\tDRIVER\tWARM ON")
	for _, x := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d MiB\t%s\t%s\n", strings.Join(x.Aliases, ","), x.ID, x.Status, x.VCPUs, x.MemoryMiB,
			cmp.Or(x.Driver, "-"), cmp.Or(strings.Join(x.Warm, ","), "-"))
	}
	return w.Flush()
}
