// Package pqconn puts something around the connections of lib/pq, without a loss of what they can do.
//
// A pool asks a connection which of the driver's interfaces it has, and does without, silently, what
// it has not: cancelling, resetting, transactions that are read-only.
package database

import (
	"context"
	"database/sql/driver"
	"errors"
)

// pqConn is what a connection of lib/pq can do. Who embeds one can do it too.
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

// wrapConns returns connections of c, which must be lib/pq's or what wrapConns made of them, with around
// called for each.
func wrapConns(c driver.Connector, around func(pqConn) driver.Conn) driver.Connector {
	return connector{c, around}
}

type connector struct {
	driver.Connector
	around func(pqConn) driver.Conn
}

// Connect implements driver.Connector.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	raw, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	full, ok := raw.(pqConn)
	if !ok {
		return nil, errors.Join(errors.New("pqconn: not a connection of lib/pq"), raw.Close())
	}
	return c.around(full), nil
}
