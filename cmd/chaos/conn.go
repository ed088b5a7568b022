//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"
)

// A trackedConn is a client's connection that remembers the error that ended reading and the one that ended writing.
// net/http does not always return it: if a request's body is cut off, net/http reports the failed write, whatever was
// read before. The kernel reports a reset only once, to the read or to the write.
type trackedConn struct {
	net.Conn

	mu               sync.Mutex
	reading, writing string // how the peer ended it; "": not
}

func dialTracked(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &trackedConn{Conn: conn}, nil
}

// Read implements io.Reader.
func (l *trackedConn) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if err != nil {
		l.end(&l.reading, "reading", err)
	}
	return n, err
}

// Write implements io.Writer.
func (l *trackedConn) Write(p []byte) (int, error) {
	n, err := l.Conn.Write(p)
	if err != nil {
		l.end(&l.writing, "writing", err)
	}
	return n, err
}

func (l *trackedConn) end(ended *string, what string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// net.ErrClosed means that the client itself closed the connection.
	if *ended == "" && !errors.Is(err, net.ErrClosed) {
		*ended = fmt.Sprintf("%s ended with %q at %s; ", what, err, time.Now().Format("15:04:05.000"))
	}
}

// explain adds the state of its connection to a request's error.
func explain(err error, by httptrace.GotConnInfo) error {
	l, ok := by.Conn.(*trackedConn)
	if !ok {
		return err // no connection was made
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	used := "new"
	if by.Reused {
		used = fmt.Sprintf("used before and idle for %s", by.IdleTime.Round(time.Millisecond))
	}
	ended := cmp.Or(strings.TrimSuffix(l.reading+l.writing, "; "), "not ended by the peer")
	return fmt.Errorf("%w (connection from %s, %s; %s)", err, l.LocalAddr(), used, ended)
}
