//go:build !linux

package server

import (
	"context"
	"net"
	"net/http"
	"syscall"
	"time"
)

// boundUnsent leaves it to the kernel how much it takes, where people only try the platform.
func boundUnsent(*net.TCPConn) {}

// boundUnread leaves it to the timeout of idle connections.
func boundUnread(time.Duration) func(net.Conn, http.ConnState) { return nil }

// boundUnanswered leaves it to the kernel when it gives a connection up.
func boundUnanswered(context.Context, string, string, syscall.RawConn) error { return nil }
