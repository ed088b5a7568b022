//go:build !linux

package server

import (
	"net"
	"net/http"
	"time"
)

// boundUnsent leaves it to the kernel how much it takes, where people only try the platform.
func boundUnsent(*net.TCPConn) {}

// boundUnread leaves it to the timeout of idle connections.
func boundUnread(time.Duration) func(net.Conn, http.ConnState) { return nil }
