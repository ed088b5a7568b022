package server

import (
	"testing"
	"time"
)

// What a client does not read stays in the platform, where it is bounded. Planted: the option not set; the kernel then
// buffers 2.5 MiB.
func TestStallConn_KernelBuffersLittleForAClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20 // mostly the client's own receive buffer
	_, conn := connected(t, 100*time.Millisecond)
	accepted := 0
	for err := error(nil); err == nil; {
		var n int
		n, err = conn.Write(make([]byte, writeBytes))
		accepted += n
	}
	if accepted > limit {
		t.Errorf("%d bytes were accepted, want at most %d", accepted, limit)
	}
}
