package vminit

import (
	"bytes"
	"encoding/binary"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOptions(t *testing.T) {
	line := strings.Join([]string{
		"console=ttyS0", "hearth.", "hearth", Argument("layers", []string{"vda", "vdb"}), Argument("guest", []string{"vdc"}),
		Argument("disk", []string{"vdd"}), Argument("channel", []string{Vsock}), Argument("init", []string{"/bin/a b", "x,y", ""}),
		Argument("env", []string{"A=1=2", "B=é"}), "hearth.future=1", "quiet\n",
	}, " ")
	got, err := parseOptions(line)
	want := options{
		layers: []string{"vda", "vdb"}, guest: "vdc", disk: "vdd", channel: Vsock,
		program: []string{"/bin/a b", "x,y", ""}, env: []string{"A=1=2", "B=é"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestBadOptions(t *testing.T) {
	const good = "hearth.layers=vda hearth.disk=vdb hearth.channel=serial hearth.init=%2Finit "
	if _, err := parseOptions(good); err != nil {
		t.Fatal(err)
	}
	for line, text := range map[string]string{
		"":                          "disk",
		good + "hearth.layers=":     "layers",
		good + "hearth.layers=../x": "../x",
		good + "hearth.disk=sda":    "sda",
		good + "hearth.guest=vd":    "vd",
		good + "hearth.channel=tcp": "tcp",
		good + "hearth.init=init":   "absolute",
		good + "hearth.init=%zz":    "%zz",
		good + "hearth.layers=" + strings.Repeat("vda,", 64) + "vda": "65",
	} {
		if _, err := parseOptions(line); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%.60q: got %v, want an error with %q", line, err, text)
		}
	}
}

func FuzzOptions(f *testing.F) {
	f.Add("hearth.layers=vda hearth.disk=vdb hearth.channel=serial hearth.init=%2Finit,a+b")
	f.Fuzz(func(t *testing.T, line string) {
		o, err := parseOptions(line)
		if err != nil {
			return
		}
		again, err := parseOptions(strings.Join([]string{
			Argument("layers", o.layers), Argument("disk", []string{o.disk}), Argument("channel", []string{o.channel}),
			Argument("init", o.program),
		}, " "))
		if err != nil || !reflect.DeepEqual(again.program, o.program) || !reflect.DeepEqual(again.layers, o.layers) {
			t.Errorf("%+v became %+v, %v", o, again, err)
		}
	})
}

func TestEnvironment(t *testing.T) {
	got := environment([]string{"HOME=/x", "A=b", "A=c"})
	if want := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/x", "A=c"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestExitOf(t *testing.T) {
	if e := exitOf(syscall.WaitStatus(3 << 8)); e.Code != 3 || e.Signal != 0 || e.OOM {
		t.Errorf("got %+v", e)
	}
	if e := exitOf(syscall.WaitStatus(15)); e.Code != 143 || e.Signal != 15 || e.OOM {
		t.Errorf("got %+v", e)
	}
}

func TestLimits(t *testing.T) {
	memory, processes, err := limits()
	var info unix.Sysinfo_t
	_ = unix.Sysinfo(&info)
	total := int64(info.Totalram) * int64(info.Unit)
	if err != nil || memory >= total || memory < total/2 || processes < 256 || processes > 32768 {
		t.Errorf("%d bytes of %d, %d processes, %v", memory, total, processes, err)
	}
}

// TestForwardNeverBlocks: a program may say what it likes, and as much.
func TestForwardNeverBlocks(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	console, done := make(stuckConsole), make(chan struct{})
	go func() {
		defer close(done)
		forward(r, console)
	}()
	if n, err := w.Write(bytes.Repeat([]byte("x"), 8<<20)); err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	_ = w.Close()
	<-done
	close(console)
}

// stuckConsole is one that nobody reads, until it is closed.
type stuckConsole chan struct{}

func (c stuckConsole) Write(p []byte) (int, error) {
	<-c
	return len(p), nil
}

func message(seq uint32, kind uint16, body []byte) []byte {
	b := make([]byte, netlinkHeader)
	binary.NativeEndian.PutUint32(b, uint32(netlinkHeader+len(body)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint32(b[8:], seq)
	b = append(b, body...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func TestNetlinkParse(t *testing.T) {
	n := &netlink{seq: 7}
	errno := func(e int32) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(-e)) }
	stale := message(6, unix.NLMSG_ERROR, errno(int32(unix.EPERM)))
	b := append(append(stale, message(7, 20, []byte("one"))...), message(7, 20, []byte("two!"))...)
	done, answers, err := n.parse(b)
	if done || err != nil || len(answers) != 2 || string(answers[0]) != "one" || string(answers[1]) != "two!" {
		t.Errorf("got %v, %q, %v", done, answers, err)
	}
	if done, _, err := n.parse(message(7, unix.NLMSG_DONE, errno(0))); !done || err != nil {
		t.Errorf("done: %v, %v", done, err)
	}
	if done, _, err := n.parse(message(7, unix.NLMSG_ERROR, errno(int32(unix.EEXIST)))); !done || err != unix.EEXIST {
		t.Errorf("error: %v, %v", done, err)
	}
	if _, _, err := n.parse([]byte{255, 255, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}); err == nil {
		t.Error("a message longer than its datagram was taken")
	}
}

func TestAttributes(t *testing.T) {
	b := attribute(attribute(nil, 1, []byte("abc")), 2, nil)
	if got := attributes(b); string(got[1]) != "abc" || len(got) != 2 {
		t.Errorf("got %v", got)
	}
	attributes([]byte{1, 0, 1, 0})
	attributes([]byte{200, 0, 1, 0})
}
