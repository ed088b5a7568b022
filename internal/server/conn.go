package server

import (
	"errors"
	"net"
	"os"
	"time"
)

// maxUnsent bounds the bytes of an answer that the kernel buffers for one connection before it can send them. By default
// it buffers 2.5 MiB and more: for 1,000 clients that do not read, 1.2 GiB that no setting bounds, and a stalled client
// would be noticed late or never.
const maxUnsent = 64 << 10

// stallListener bounds how long a client may take to accept a write. A deadline for a whole answer would cut off large
// files on slow connections; this one cuts off only clients that have stopped reading.
type stallListener struct {
	net.Listener
	timeout time.Duration
}

func (l stallListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	stall := stallConn{conn, l.timeout}
	if tcp := tcpOf(stall); tcp != nil {
		limitUnsent(tcp)
	}
	return stall, nil
}

type stallConn struct {
	net.Conn
	timeout time.Duration
}

// Write implements net.Conn. A long answer is written in slices with a deadline each, so that a client that reads slowly
// but steadily is not cut off.
func (c stallConn) Write(p []byte) (int, error) {
	written := 0
	for {
		if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(p[written:min(len(p), written+writeBytes)])
		written += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.discardUnsent()
		}
		if err != nil || written == len(p) {
			return written, err
		}
	}
}

// discardUnsent makes the following Close discard unsent data. Otherwise the kernel keeps it for minutes, for a client
// that has stopped reading.
func (c stallConn) discardUnsent() {
	if tcp := tcpOf(c); tcp != nil {
		_ = tcp.SetLinger(0)
	}
}

// tcpOf returns the TCP connection under an accepted one, or nil if it is of another kind.
func tcpOf(conn net.Conn) *net.TCPConn {
	stall, _ := conn.(stallConn)
	tcp, _ := stall.Conn.(*net.TCPConn)
	return tcp
}

// CloseWrite is used by net/http to end an early answer while the client is still sending.
func (c stallConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
