package database

import (
	"context"
	"database/sql/driver"
	"errors"
	"testing"
)

// failing connects to nowhere, or with another driver.
type failing struct {
	driver.Connector
	conn driver.Conn
	err  error
}

func (f failing) Connect(context.Context) (driver.Conn, error) { return f.conn, f.err }

func TestWrapConns_TakesConnectionsOfPQOnly(t *testing.T) {
	t.Parallel()
	around := func(c pqConn) driver.Conn { return c }
	errNowhere := errors.New("nowhere")
	if conn, err := wrapConns(failing{err: errNowhere}, around).Connect(t.Context()); conn != nil || !errors.Is(err, errNowhere) {
		t.Errorf("%v, %v", conn, err)
	}
	other := &otherConn{}
	if conn, err := wrapConns(failing{conn: other}, around).Connect(t.Context()); conn != nil || err == nil || !other.closed {
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
