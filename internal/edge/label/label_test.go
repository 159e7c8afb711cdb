package label

import (
	"encoding/binary"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"hearth/internal/gen/guestv1"
)

func framed(flags byte, msg []byte) []byte {
	b := append([]byte{flags}, binary.BigEndian.AppendUint32(nil, uint32(len(msg)))...)
	return append(b, msg...)
}

func inProto(t testing.TB, m proto.Message) []byte {
	t.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestCommand(t *testing.T) {
	const asJSON, asProto = "application/connect+json", "application/connect+proto; charset=utf-8"
	shell := &guestv1.StartRequest{Process: &guestv1.ProcessConfig{Cmd: "/bin/bash", Args: []string{"-l", "-c", "echo hi > a"}, Envs: map[string]string{"A": "b"}}}
	for _, tc := range []struct {
		name, kind string
		body       []byte
		want       string
	}{
		{"a shell's line", asJSON, framed(0, []byte(`{"process":{"cmd":"/bin/bash","args":["-l","-c","echo hi > a"]},"stdin":false}`)), "echo hi > a"},
		{"in protobuf", asProto, framed(0, inProto(t, shell)), "echo hi > a"},
		{"cut short", asProto, framed(0, inProto(t, shell))[:30], "echo hi"},
		{"a program", asJSON, framed(0, []byte(`{"process":{"cmd":"ls","args":["-c","/"]}}`)), "ls -c /"},
		{"a terminal", asJSON, framed(0, []byte(`{"process":{"cmd":"/bin/bash","args":["-i","-l"]},"pty":{"size":{}}}`)), "terminal /bin/bash -i -l"},
		{"a terminal in protobuf", asProto, framed(0, inProto(t, &guestv1.StartRequest{Process: shell.Process, Pty: &guestv1.PTY{}})), "terminal echo hi > a"},
		{"compressed", asJSON, framed(1, []byte("\x1f\x8b")), "command"},
		{"no JSON", asJSON, framed(0, []byte(`{"process":`)), "command"},
		{"nothing", asJSON, nil, "command"},
		{"an empty message", asProto, framed(0, nil), "command"},
		{"a length that lies", asProto, append(framed(0, nil), 0x0a, 0xff), "command"},
	} {
		if got := Command(tc.kind, tc.body); got != tc.want && !(tc.name == "cut short" && strings.HasPrefix("echo hi > a", got) && got != "") {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestEnds(t *testing.T) {
	end := &guestv1.StartResponse{Event: &guestv1.ProcessEvent{Event: &guestv1.ProcessEvent_End{End: &guestv1.ProcessEvent_EndEvent{Exited: true}}}}
	data := &guestv1.StartResponse{Event: &guestv1.ProcessEvent{Event: &guestv1.ProcessEvent_Data{Data: &guestv1.ProcessEvent_DataEvent{
		Output: &guestv1.ProcessEvent_DataEvent_Stdout{Stdout: []byte("\x1a\x00")}}}}}
	for _, tc := range []struct {
		kind string
		msg  []byte
		want bool
	}{
		{"application/connect+proto", inProto(t, end), true},
		{"application/connect+proto", inProto(t, data), false},
		{"application/connect+json", []byte(`{"event": {"end":{"exited":true}}}`), true},
		{"application/connect+json", []byte(`{"event":{"data":{"stdout":"ImVuZCI6e30="}}}`), false},
		{"application/connect+json", []byte(`{"event":`), false},
	} {
		if got := Ends(tc.kind, tc.msg); got != tc.want {
			t.Errorf("%s %q: %v", tc.kind, tc.msg, got)
		}
	}
}

func TestCell(t *testing.T) {
	for body, want := range map[string]string{
		`{"code":"\n  x = 1\nx","language":"python"}`: "cell x = 1",
		`{"code":""}`: "cell", `{"code":7}`: "cell", `{`: "cell", ``: "cell",
	} {
		if got := Cell([]byte(body)); got != want {
			t.Errorf("%s: %q, want %q", body, got, want)
		}
	}
}

func FuzzLabel(f *testing.F) {
	f.Add("application/connect+proto", []byte("\x00\x00\x00\x00\x06\x0a\x04\x0a\x02ls"))
	f.Add("application/connect+json", []byte("\x00\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		if got := Command(kind, body); len(got) > 4*len(body)+64 {
			t.Errorf("%d bytes of %d", len(got), len(body))
		}
		Cell(body)
		Ends(kind, body)
	})
}
