//go:build !linux

package server

import (
	"net"
	"net/http"
	"time"
)

// limitUnsent leaves the buffer to the kernel: on these systems the platform is only tried out.
func limitUnsent(*net.TCPConn) {}

// limitUnreadWhenIdle leaves it to the timeout of idle connections.
func limitUnreadWhenIdle(time.Duration) func(net.Conn, http.ConnState) { return nil }
