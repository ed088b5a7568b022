package database

import (
	"context"
	"database/sql/driver"
	"errors"
)

// pqConn is what a connection of lib/pq implements, and what a wrapper has to embed. database/sql asks a connection
// which of these interfaces it has. It does without a missing one silently: statements that cannot be cancelled,
// sessions that are not reset, transactions that are not read-only.
type pqConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

// wrapConns returns a connector whose connections are those of c, each passed through wrap. The connections of c must
// be lib/pq's, or already wrapped.
func wrapConns(c driver.Connector, wrap func(pqConn) driver.Conn) driver.Connector {
	return wrappingConnector{c, wrap}
}

type wrappingConnector struct {
	driver.Connector
	wrap func(pqConn) driver.Conn
}

// Connect implements driver.Connector.
func (c wrappingConnector) Connect(ctx context.Context) (driver.Conn, error) {
	raw, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	conn, ok := raw.(pqConn)
	if !ok {
		return nil, errors.Join(errors.New("database: not a connection of lib/pq"), raw.Close())
	}
	return c.wrap(conn), nil
}
