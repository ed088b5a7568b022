package database

import (
	"context"
	"database/sql/driver"
	"errors"
	"testing"
)

// fakeConnector fails to connect, or returns connections of another driver.
type fakeConnector struct {
	driver.Connector
	conn driver.Conn
	err  error
}

func (f fakeConnector) Connect(context.Context) (driver.Conn, error) { return f.conn, f.err }

func TestWrapConns_TakesConnectionsOfPQOnly(t *testing.T) {
	t.Parallel()
	same := func(c pqConn) driver.Conn { return c }
	errRefused := errors.New("refused")
	if conn, err := wrapConns(fakeConnector{err: errRefused}, same).Connect(t.Context()); conn != nil || !errors.Is(err, errRefused) {
		t.Errorf("%v, %v", conn, err)
	}
	other := &otherConn{}
	if conn, err := wrapConns(fakeConnector{conn: other}, same).Connect(t.Context()); conn != nil || err == nil || !other.closed {
		t.Errorf("%v, %v, closed %t", conn, err, other.closed)
	}
}

// otherConn is a connection that is not lib/pq's.
type otherConn struct {
	driver.Conn
	closed bool
}

func (c *otherConn) Close() error {
	c.closed = true
	return nil
}
