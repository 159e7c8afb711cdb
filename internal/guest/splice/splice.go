// Package splice makes one connection of two.
package splice

import (
	"io"
	"net"
	"sync"
)

// End is a connection and what is read of it: the connection itself, or a reader that has bytes
// of it already.
type End struct {
	net.Conn
	From io.Reader
}

// Join copies both ways until both have ended or one has failed, which closes both. The end of one
// way is passed on where a connection can end one way alone.
func Join(a, b End) {
	var both sync.WaitGroup
	oneWay := func(dst, src End) {
		_, err := io.Copy(dst.Conn, src.From)
		if half, ok := dst.Conn.(interface{ CloseWrite() error }); ok && err == nil {
			err = half.CloseWrite()
		}
		if err != nil { // the other direction is of no use any more
			_ = a.Close()
			_ = b.Close()
		}
	}
	both.Go(func() { oneWay(b, a) })
	both.Go(func() { oneWay(a, b) })
	both.Wait()
}
