package server

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// What a client does not read stays with the platform, where it is bounded. Planted: the bound not
// set, with which the kernel takes 2.5 MiB.
func TestStallConn_KernelTakesLittleForWhoDoesNotRead(t *testing.T) {
	t.Parallel()
	const most = 1 << 20 // mostly what the client's end takes, which is the client's
	_, conn := connected(t, 100*time.Millisecond)
	taken := 0
	for err := error(nil); err == nil; {
		var n int
		n, err = conn.Write(make([]byte, writeBytes))
		taken += n
	}
	if taken > most {
		t.Errorf("%d bytes were taken, want at most %d", taken, most)
	}
}

// A database whose machine is gone acknowledges nothing; nobody else would end what waits for it. Planted: the
// pool's dialer without the limit.
func TestDatabaseDialer_BoundsWhatIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := newDatabaseDialer().DialContext(t.Context(), "tcp", listener.Addr().String())
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
	}); err != nil || option != nil || got != int(unansweredTimeout.Milliseconds()) {
		t.Errorf("%d ms, %v, %v", got, err, option)
	}
}
