package httpserve

import (
	"net"
	"strings"
	"testing"
)

func TestEndOfHead(t *testing.T) {
	for head, want := range map[string]int{
		"": 0, "a": 0, "a\r\n": 0, "a\r\n\r": 0, "a\r\n\r\n": 5, "a\r\n\r\nb": 5, "a\n\nb": 3, "a\n\r\nb": 4, "a\r\nb\r\n\r\n": 8, "a\r\n\rb\n": 0,
	} {
		if got := endOfHead([]byte(head)); got != want {
			t.Errorf("%q: %d, want %d", head, got, want)
		}
	}
}

// TestPiecemeal: a head and what follows it may come in any pieces.
func TestPiecemeal(t *testing.T) {
	address := serve(t, answers(), nil)
	large := text("POST", "/echo", "A: "+strings.Repeat("b", 20_000)+"\r\nContent-Length: 3\r\n\r\nabc")
	small := text("POST", "/echo", "Content-Length: 3\r\n\r\nabc")
	for _, all := range []string{small, small + large + small, large + large} {
		for _, size := range []int{1, 7, 4095, 4097, 1 << 20} {
			if size == 1 && len(all) > 1000 {
				continue
			}
			nc, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for rest := all; rest != ""; {
					n := min(size, len(rest))
					if _, err := nc.Write([]byte(rest[:n])); err != nil {
						return
					}
					rest = rest[n:]
				}
			}()
			if got, want := received(t, nc, strings.Count(all, "HTTP/1.1")), strings.Count(all, "HTTP/1.1"); got != want {
				t.Errorf("%d bytes in pieces of %d: %d answers, want %d", len(all), size, got, want)
			}
			_ = nc.Close()
		}
	}
}
