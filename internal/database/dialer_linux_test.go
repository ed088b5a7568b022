package database

import (
	"net"
	"syscall"
	"testing"
)

// A database whose machine is gone acknowledges nothing, and no context ends the wait for it. Planted: the dialer
// without the limit.
func TestDialer_LimitsWhatIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := newDialer().DialContext(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got int
	var option error
	if err := raw.Control(func(fd uintptr) {
		got, option = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout)
	}); err != nil || option != nil || got != int(unacknowledgedTimeout.Milliseconds()) {
		t.Errorf("%d ms, %v, %v", got, err, option)
	}
}
