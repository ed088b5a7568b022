package server

import (
	"errors"
	"net"
	"os"
	"time"
)

// maxUnsent bounds what the kernel takes of an answer before it can send it, in bytes. Left to
// itself it takes 2.5 MiB and more: for 1,000 clients that do not read, 1.2 GiB which no setting
// bounds, and of who reads so little it would be noticed late or never.
const maxUnsent = 64 << 10

// stallListener bounds how long a connection's peer may take to accept a write. A deadline
// for a whole answer would cut off large files on slow lines; this one only cuts off those
// who have stopped reading.
type stallListener struct {
	net.Listener
	timeout time.Duration
}

func (l stallListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	stalling := stallConn{conn, l.timeout}
	if tcp := tcpOf(stalling); tcp != nil {
		boundUnsent(tcp)
	}
	return stalling, nil
}

type stallConn struct {
	net.Conn
	timeout time.Duration
}

// Write implements net.Conn. A long answer is written in slices with a deadline each: who
// reads slowly and steadily is not one who has stopped.
func (c stallConn) Write(p []byte) (int, error) {
	written := 0
	for {
		if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(p[written:min(len(p), written+writeBytes)])
		written += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.giveUp()
		}
		if err != nil || written == len(p) {
			return written, err
		}
	}
}

// giveUp makes the close that follows drop what was not sent. Otherwise the kernel keeps it for
// minutes, for a client that has stopped reading.
func (c stallConn) giveUp() {
	if tcp := tcpOf(c); tcp != nil {
		_ = tcp.SetLinger(0)
	}
}

// tcpOf returns the TCP connection below one that was accepted, nil if it is of another kind.
func tcpOf(conn net.Conn) *net.TCPConn {
	stalling, _ := conn.(stallConn)
	tcp, _ := stalling.Conn.(*net.TCPConn)
	return tcp
}

// CloseWrite is how net/http tells a client that an early answer is complete before it stops
// reading what the client still sends.
func (c stallConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
