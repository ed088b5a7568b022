package forward

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// conn sets a deadline for each write. Reads have none: the transport reads from the start of the
// exchange, while sending a large body may take hours. Post's answer timer bounds reads.
type conn struct {
	net.Conn
	stall  time.Duration
	once   sync.Once
	closed chan struct{}
}

func newConn(nc net.Conn, stall time.Duration) *conn {
	return &conn{Conn: nc, stall: stall, closed: make(chan struct{})}
}

// Write fails with os.ErrDeadlineExceeded if the receiver does not take p within
// the stall timeout.
//
// A receiver that answers early and closes the connection (such as a 413 without reading on) makes the
// next write fail while its answer is still unread. The transport would report the failed write, and
// the answer would be lost. Write therefore delays the error until the connection is closed, which the
// reading side does at the end of the answer, or at the error that a read of a reset connection returns.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		limit := time.NewTimer(c.stall)
		defer limit.Stop()
		select {
		case <-c.closed:
		case <-limit.C:
		}
	}
	return n, err
}

func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
