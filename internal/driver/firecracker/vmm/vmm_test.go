package vmm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"unicode"
)

// monitor answers every call with the same raw bytes.
func monitor(t *testing.T, answer string) (string, <-chan *http.Request) {
	t.Helper()
	path := filepath.Join(t.TempDir(), strings.Repeat("d", 100), "api") // longer than a socket address
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Dir(path))
	l, err := net.Listen("unix", "api")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan *http.Request, 16)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				body, _ := io.ReadAll(r.Body)
				r.Body = io.NopCloser(bytes.NewReader(body))
				asked <- r
				_, _ = io.WriteString(c, answer)
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-served })
	return path, asked
}

func TestCallsAreWhatTheAPIDescribes(t *testing.T) {
	path, asked := monitor(t, "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n")
	c, ctx := New(path, os.Getuid()), t.Context()
	limit := &RateLimiter{Bandwidth: &TokenBucket{Size: 5, OneTimeBurst: 6, RefillTime: 7}}
	for _, test := range []struct {
		call       func() error
		what, body string
	}{
		{func() error { return c.SetMachine(ctx, MachineConfig{VCPUCount: 2, MemSizeMiB: 512}) },
			"PUT /machine-config", `{"vcpu_count":2,"mem_size_mib":512,"smt":false,"track_dirty_pages":false}`},
		{func() error { return c.SetCPU(ctx, CPUConfig(`{"cpuid_modifiers":[]}`)) }, "PUT /cpu-config", `{"cpuid_modifiers":[]}`},
		{func() error {
			return c.SetBoot(ctx, BootSource{KernelImagePath: "/kernel", InitrdPath: "/initrd", BootArgs: "a b"})
		},
			"PUT /boot-source", `{"kernel_image_path":"/kernel","initrd_path":"/initrd","boot_args":"a b"}`},
		{func() error { return c.SetDrive(ctx, Drive{DriveID: "disk", PathOnHost: "/disk", RateLimiter: limit}) },
			"PUT /drives/disk", `{"drive_id":"disk","path_on_host":"/disk","is_root_device":false,"is_read_only":false,"rate_limiter":{"bandwidth":{"size":5,"one_time_burst":6,"refill_time":7}}}`},
		{func() error {
			return c.SetNetwork(ctx, NetworkInterface{IfaceID: "eth0", HostDevName: "tap0", GuestMAC: "02:00:00:00:00:01"})
		},
			"PUT /network-interfaces/eth0", `{"iface_id":"eth0","host_dev_name":"tap0","guest_mac":"02:00:00:00:00:01"}`},
		{func() error { return c.SetVsock(ctx, Vsock{GuestCID: 3, UDSPath: "/vsock"}) }, "PUT /vsock", `{"guest_cid":3,"uds_path":"/vsock"}`},
		{func() error { return c.SetBalloon(ctx, Balloon{DeflateOnOOM: true}) }, "PUT /balloon", `{"amount_mib":0,"deflate_on_oom":true}`},
		{func() error { return c.SetEntropy(ctx, Entropy{}) }, "PUT /entropy", `{}`},
		{func() error { return c.SetSerial(ctx, Serial{SerialOutPath: "/out"}) }, "PUT /serial", `{"serial_out_path":"/out"}`},
		{func() error { return c.Start(ctx) }, "PUT /actions", `{"action_type":"InstanceStart"}`},
		{func() error { return c.Inflate(ctx, 64) }, "PATCH /balloon", `{"amount_mib":64}`},
		{func() error { return c.Pause(ctx) }, "PATCH /vm", `{"state":"Paused"}`},
		{func() error { return c.Resume(ctx) }, "PATCH /vm", `{"state":"Resumed"}`},
		{func() error {
			return c.CreateSnapshot(ctx, SnapshotCreate{SnapshotType: Diff, SnapshotPath: "/s", MemFilePath: "/m"})
		},
			"PUT /snapshot/create", `{"snapshot_type":"Diff","snapshot_path":"/s","mem_file_path":"/m"}`},
		{func() error {
			return c.LoadSnapshot(ctx, SnapshotLoad{SnapshotPath: "/s", MemBackend: MemBackend{File, "/m"}, TrackDirtyPages: true, ResumeVM: true,
				NetworkOverrides: []NetworkOverride{{"eth0", "tap1"}}, VsockOverride: &VsockOverride{"/v"}})
		}, "PUT /snapshot/load", `{"snapshot_path":"/s","mem_backend":{"backend_type":"File","backend_path":"/m"},"track_dirty_pages":true,"resume_vm":true,` +
			`"network_overrides":[{"iface_id":"eth0","host_dev_name":"tap1"}],"vsock_override":{"uds_path":"/v"}}`},
	} {
		if err := test.call(); err != nil {
			t.Errorf("%s: %v", test.what, err)
			continue
		}
		r := <-asked
		body, _ := io.ReadAll(r.Body)
		if got := r.Method + " " + r.URL.Path; got != test.what || string(body) != test.body {
			t.Errorf("got %s %s\nwant %s %s", got, body, test.what, test.body)
		}
		if r.ContentLength < 0 || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Accept-Encoding") != "" {
			t.Errorf("%s: length %d, header %v", test.what, r.ContentLength, r.Header)
		}
	}
}

func TestRepliesThatAreNone(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for name, test := range map[string]struct{ answer, want string }{
		"nothing":      {"", "EOF"},
		"no HTTP":      {"hello\r\n\r\n", "malformed"},
		"200":          {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "status 200"},
		"long body":    {"HTTP/1.1 400 \r\nContent-Length: 1048576\r\n\r\n" + long, "more than 65536 bytes"},
		"long header":  {"HTTP/1.1 204 \r\nX: " + long + "\r\n\r\n", "exceeded"},
		"redirect":     {"HTTP/1.1 307 \r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n", "status 307"},
		"cut":          {"HTTP/1.1 400 \r\nContent-Length: 100\r\n\r\n{", "unexpected EOF"},
		"no reason":    {"HTTP/1.1 400 \r\nContent-Length: 2\r\n\r\n{}", "it gave no reason"},
		"a reason":     {"HTTP/1.1 400 \r\nContent-Length: 33\r\n\r\n{\"fault_message\":\"no \\u001b[31m\"}", "no  [31m"},
		"endless list": {"HTTP/1.1 100 \r\n\r\nHTTP/1.1 100 \r\n\r\nHTTP/1.1 100 \r\n\r\nHTTP/1.1 100 \r\n\r\nHTTP/1.1 100 \r\n\r\nHTTP/1.1 100 \r\n\r\nHTTP/1.1 100 \r\n\r\n", ""},
	} {
		path, _ := monitor(t, test.answer)
		err := New(path, os.Getuid()).Pause(t.Context())
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
	}
}

func TestAnswersAreRead(t *testing.T) {
	reply := func(body string) string {
		return fmt.Sprintf("HTTP/1.1 200 \r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	path, _ := monitor(t, reply(`{"id":"x","state":"Paused","vmm_version":"1.16.1","app_name":"Firecracker"}`))
	if info, err := New(path, os.Getuid()).Info(t.Context()); err != nil || info.State != Paused || info.VMMVersion != "1.16.1" {
		t.Errorf("%+v, %v", info, err)
	}
	path, _ = monitor(t, reply(`{"firecracker_version":"1.16.1"}`))
	if v, err := New(path, os.Getuid()).Version(t.Context()); err != nil || v != "1.16.1" {
		t.Errorf("%q, %v", v, err)
	}
	path, _ = monitor(t, reply(`{"target_mib":3,"free_memory":4096,"unknown":1}`))
	if s, err := New(path, os.Getuid()).BalloonStats(t.Context()); err != nil || s.TargetMiB != 3 || s.FreeMemory != 4096 {
		t.Errorf("%+v, %v", s, err)
	}
	path, _ = monitor(t, reply(`[]`))
	if _, err := New(path, os.Getuid()).Info(t.Context()); err == nil {
		t.Error("a list was taken for an object")
	}
	path, _ = monitor(t, "HTTP/1.1 200 \r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\n{}")
	if _, err := New(path, os.Getuid()).Info(t.Context()); err == nil {
		t.Error("a page was taken for an answer")
	}
}

// A socket that is another user's is not spoken to: it may be another machine's.
func TestForeignSocket(t *testing.T) {
	path, asked := monitor(t, "HTTP/1.1 204 \r\n\r\n")
	if err := New(path, os.Getuid()+1).Pause(t.Context()); err == nil || !strings.Contains(err.Error(), "user") {
		t.Errorf("got %v", err)
	}
	if len(asked) > 0 {
		t.Error("it was asked")
	}
}

// A monitor that takes a call and never answers costs quickCall, not for ever.
func TestHangingMonitor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		c := &Client{&http.Client{Transport: &http.Transport{
			DialContext:       func(context.Context, string, string) (net.Conn, error) { return ours, nil },
			DisableKeepAlives: true,
		}}}
		if err := c.Pause(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		_ = ours.Close()
	})
}

func FuzzReply(f *testing.F) {
	f.Add([]byte("HTTP/1.1 204 \r\n\r\n"))
	f.Add([]byte("HTTP/1.1 400 \r\nContent-Length: 21\r\n\r\n{\"fault_message\":\"x\"}"))
	f.Add([]byte("HTTP/1.1 200 \r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{\"state\":\"Paused\"}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, answer := range []any{nil, &InstanceInfo{}} {
			resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), nil)
			if err != nil {
				return
			}
			err = reply(resp, answer)
			if fault, ok := errors.AsType[*Fault](err); ok {
				if n := len([]rune(fault.Message)); n > maxFault+3 {
					t.Fatalf("a fault of %d runes", n)
				}
				if strings.ContainsFunc(fault.Message, func(r rune) bool { return !unicode.IsPrint(r) && r != ' ' }) {
					t.Fatalf("a fault with control characters: %q", fault.Message)
				}
			}
			if err == nil && answer == nil && resp.StatusCode != 204 {
				t.Fatalf("status %d was taken for done", resp.StatusCode)
			}
		}
	})
}

func TestOptionalFieldsAreLeftOut(t *testing.T) {
	raw, err := json.Marshal(SnapshotLoad{SnapshotPath: "/s", MemBackend: MemBackend{Uffd, "/p"}})
	if want := `{"snapshot_path":"/s","mem_backend":{"backend_type":"Uffd","backend_path":"/p"}}`; err != nil || string(raw) != want {
		t.Errorf("got %s, %v", raw, err)
	}
}
