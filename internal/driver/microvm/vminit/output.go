package vminit

import (
	"io"
	"os"
	"time"
)

const (
	outputBurst = 32 << 10 // bytes of the first program's output that are shown at once
	outputRate  = 2 << 10  // and those a second after that
	outputChunk = 4 << 10
)

// forward shows a program's output on the machine's console, which is slow and
// costs the host: what is more than a little is dropped. The program is never
// held up by it.
func forward(from *os.File, console io.Writer) {
	defer from.Close()
	chunks := make(chan []byte, 8)
	defer close(chunks)
	go func() {
		for c := range chunks {
			_, _ = console.Write(c)
		}
	}()
	budget, last := outputBurst, time.Now()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		now := time.Now()
		budget = min(outputBurst, budget+int(min(now.Sub(last), time.Minute)*outputRate/time.Second))
		last = now
		n = min(n, budget, outputChunk)
		if n == 0 {
			continue
		}
		select {
		case chunks <- append([]byte(nil), buf[:n]...):
			budget -= n
		default:
		}
	}
}

// openConsole opens the machine's console; what is written where there is none is lost.
func openConsole() io.Writer {
	console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if err != nil {
		return io.Discard
	}
	return console
}
