package server

import (
	"context"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

// Of tcp(7), which package syscall does not have.
const (
	tcpUserTimeout  = 18
	tcpNotsentLowat = 25
)

// boundUnsent makes the kernel take no more of an answer than maxUnsent before it can send it.
// What is on its way is not bounded by it, so distance costs no speed. Where this fails, slow
// readers cost more.
func boundUnsent(conn *net.TCPConn) { setTCP(conn, tcpNotsentLowat, maxUnsent) }

// boundUnread has the kernel cut a connection on which all is said, if its client does not take
// in time what is left of the last answer. While a request is served it must not: somebody who
// waits for minutes may be out of reach for a moment.
func boundUnread(timeout time.Duration) func(net.Conn, http.ConnState) {
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

// boundUnanswered is for net.Dialer: it has the kernel give up a connection whose other side
// acknowledges nothing. A context does not end it: lib/pq waits for an answer whatever it says.
func boundUnanswered(_ context.Context, network, _ string, raw syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	return raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(unansweredTimeout.Milliseconds()))
	})
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
