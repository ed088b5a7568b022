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

// A line is a client's connection. It remembers what ended it, for reading and for writing, since net/http does not
// always tell: of a request whose body is cut off it reports that nothing can be written any more, whatever was read
// before. The kernel tells of a reset only once, to whichever of the two asks first.
type trackedConn struct {
	net.Conn

	mu               sync.Mutex
	reading, writing string // how others ended it; "": they have not
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
	// What says that it is closed is the client's own doing.
	if *ended == "" && !errors.Is(err, net.ErrClosed) {
		*ended = fmt.Sprintf("%s ended with %q at %s; ", what, err, time.Now().Format("15:04:05.000"))
	}
}

// explain adds to the error of a request what is known of its connection.
func explain(err error, by httptrace.GotConnInfo) error {
	l, ok := by.Conn.(*trackedConn)
	if !ok {
		return err // there was none
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	used := "new"
	if by.Reused {
		used = fmt.Sprintf("used before and idle for %s", by.IdleTime.Round(time.Millisecond))
	}
	ended := cmp.Or(strings.TrimSuffix(l.reading+l.writing, "; "), "nobody else ended it")
	return fmt.Errorf("%w (connection from %s, %s; %s)", err, l.LocalAddr(), used, ended)
}
