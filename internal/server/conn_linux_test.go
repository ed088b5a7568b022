package server

import (
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
