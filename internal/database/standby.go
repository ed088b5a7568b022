// Package synced makes an error of a commit that PostgreSQL has kept on one machine only, though it was to be on
// two (synchronous_standby_names).
//
// When such a commit waits for a standby that is gone, and somebody cancels the wait (pg_cancel_backend),
// PostgreSQL says that the transaction is committed, with a warning. statement_timeout does not count here. Who takes
// that for a success answers 200 for what the loss of a machine takes away. What became of the transaction is as open as
// when the connection breaks during the commit.
//
// Statements outside of a transaction are not looked at: what has to last is written in one.
package database

import (
	"context"
	"database/sql/driver"
	"errors"
	"strings"

	"github.com/lib/pq"
)

// ErrUnconfirmed means that the transaction is committed here, and perhaps not on the standby.
var ErrUnconfirmed = errors.New("synced: committed, but not confirmed by the standby")

// completed is the class of notices that tell of nothing wrong.
const completed = "00"

// Confirmed returns connections of c, which must be lib/pq's, whose commits are looked at.
func Confirmed(c driver.Connector) driver.Connector {
	return wrapConns(c, func(full pqConn) driver.Conn {
		made := &confirmedConn{pqConn: full}
		pq.SetNoticeHandler(full, func(notice *pq.Error) {
			made.warned = made.warned || !strings.HasPrefix(string(notice.Code), completed)
		})
		return made
	})
}

// confirmedConn is one connection, which database/sql never uses for two things at once.
type confirmedConn struct {
	pqConn
	warned bool // since it was last set to false
}

// BeginTx implements driver.ConnBeginTx.
func (c *confirmedConn) BeginTx(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	tx, err := c.pqConn.BeginTx(ctx, options)
	if err != nil {
		return nil, err
	}
	return transaction{tx, c}, nil
}

type transaction struct {
	driver.Tx
	conn *confirmedConn
}

// Commit implements driver.Tx. ErrUnconfirmed.
func (t transaction) Commit() error {
	t.conn.warned = false
	if err := t.Tx.Commit(); err != nil {
		return err
	}
	if t.conn.warned {
		return ErrUnconfirmed
	}
	return nil
}
