package install

import (
	"io"
	"strings"
	"testing"

	"hearth/internal/hearth"
)

func TestWhatIsMissingIsTold(t *testing.T) {
	if _, err := program("/nowhere/qemu"); hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), "install") {
		t.Errorf("%v", err)
	}
	if _, err := firmware(t.TempDir()); hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), FirmwareFile) {
		t.Errorf("%v", err)
	}
	if _, err := loaderOf("/etc/passwd"); err == nil {
		t.Error("a text was taken for a program")
	}
	if _, err := askProgram(t.Context(), "/bin/true"); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("a program that is no QEMU: %v", err)
	}
}

// An old QEMU, and one that lacks what is needed, are told from others.
func TestUnfitQEMU(t *testing.T) {
	hello := func(major, minor string) string {
		return `{"QMP": {"version": {"qemu": {"major": ` + major + `, "minor": ` + minor + `, "micro": 0}}, "capabilities": []}}` + "\n" + `{"return": {}}` + "\n"
	}
	lists := func(command, machine string) string { // maps are asked in any order
		both := `{"return": [{"name": "` + command + `"}, {"name": "` + machine + `"}]}` + "\n"
		return both + both
	}
	for name, c := range map[string]struct{ says, want string }{
		"old":        {hello("6", "2"), "too old"},
		"no save":    {hello("7", "2") + lists("stop", "microvm"), SaveCommand},
		"no machine": {hello("10", "0") + lists(SaveCommand, "q35"), "microvm"},
		"good":       {hello("10", "0") + lists(SaveCommand, "microvm"), ""},
	} {
		_, err := askQEMU(t.Context(), io.Discard, strings.NewReader(c.says))
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || hearth.KindOf(err) != hearth.FailedPrecondition) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
