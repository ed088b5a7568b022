package server

import (
	"net"
	"net/http"
	"syscall"
	"time"
)

// Socket options of tcp(7) that package syscall lacks.
const (
	tcpUserTimeout  = 18
	tcpNotsentLowat = 25
)

// limitUnsent makes the kernel buffer at most maxUnsent of an answer that it cannot send yet. Data in flight does not
// count, so a long round trip costs no throughput. If the option cannot be set, slow readers take more memory.
func limitUnsent(conn *net.TCPConn) { setTCP(conn, tcpNotsentLowat, maxUnsent) }

// limitUnreadWhenIdle makes the kernel break an idle connection whose client does not acknowledge the rest of the last
// answer within timeout. It does not apply while a request is served: a client that waits minutes for a held poll may be
// unreachable for a moment.
func limitUnreadWhenIdle(timeout time.Duration) func(net.Conn, http.ConnState) {
	return func(conn net.Conn, state http.ConnState) {
		tcp := tcpOf(conn)
		switch {
		case tcp == nil:
		case state == http.StateIdle:
			setTCP(tcp, tcpUserTimeout, int(timeout.Milliseconds()))
		case state == http.StateActive:
			setTCP(tcp, tcpUserTimeout, 0)
		}
	}
}

func setTCP(conn *net.TCPConn, option, value int) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, option, value)
	})
}
