package pqconn_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"testing"

	"github.com/molecule-ai/platform/internal/pqconn"
)

// failing connects to nowhere, or with another driver.
type failing struct {
	driver.Connector
	conn driver.Conn
	err  error
}

func (f failing) Connect(context.Context) (driver.Conn, error) { return f.conn, f.err }

func TestWrap_TakesConnectionsOfPQOnly(t *testing.T) {
	t.Parallel()
	around := func(c pqconn.Conn) driver.Conn { return c }
	errNowhere := errors.New("nowhere")
	if conn, err := pqconn.Wrap(failing{err: errNowhere}, around).Connect(t.Context()); conn != nil || !errors.Is(err, errNowhere) {
		t.Errorf("%v, %v", conn, err)
	}
	other := &otherConn{}
	if conn, err := pqconn.Wrap(failing{conn: other}, around).Connect(t.Context()); conn != nil || err == nil || !other.closed {
		t.Errorf("%v, %v, closed %t", conn, err, other.closed)
	}
}

type otherConn struct {
	driver.Conn
	closed bool
}

func (c *otherConn) Close() error {
	c.closed = true
	return nil
}
