package forward

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// conn bounds each write. Reads carry no deadline: the transport reads from the
// start, while a large body may rightly take hours; Post's clock bounds them.
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
// A receiver that answers early and hangs up (413, not reading on) makes the
// next write fail while its answer still waits to be read. The transport takes
// the failed write for the result, and the answer would be lost. So the failure
// is held back until the connection is closed, which whoever reads it does: at
// the answer's end, or at the error that every read of a reset connection gives.
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
