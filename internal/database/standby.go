package database

import (
	"context"
	"database/sql/driver"
	"errors"
	"strings"

	"github.com/lib/pq"
)

// ErrUnconfirmed means that the transaction is committed on this server, and perhaps not on the standby that
// synchronous_standby_names demands. Like a connection lost during COMMIT, it leaves open whether the transaction lasts.
var ErrUnconfirmed = errors.New("database: committed, but not confirmed by the standby")

// successClass is the SQLSTATE class of notices that report no problem.
const successClass = "00"

// confirmCommits returns connections of c, which must be lib/pq's, whose Commit returns ErrUnconfirmed if PostgreSQL has
// the transaction on one server only although it should be on two.
//
// When a commit waits for a standby that is gone and the wait is cancelled (pg_cancel_backend), PostgreSQL reports the
// transaction as committed, with a warning; statement_timeout does not end such a wait. Treating it as success would
// answer 200 for data that exists on one machine only.
//
// Only transactions are checked, not single statements: everything that has to last is written in a transaction.
func confirmCommits(c driver.Connector) driver.Connector {
	return wrapConns(c, func(inner pqConn) driver.Conn {
		conn := &confirmingConn{pqConn: inner}
		pq.SetNoticeHandler(inner, func(notice *pq.Error) {
			conn.warned = conn.warned || !strings.HasPrefix(string(notice.Code), successClass)
		})
		return conn
	})
}

// confirmingConn is one connection. database/sql never uses one for two things at once.
type confirmingConn struct {
	pqConn
	warned bool // since it was last reset
}

// BeginTx implements driver.ConnBeginTx.
func (c *confirmingConn) BeginTx(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	tx, err := c.pqConn.BeginTx(ctx, options)
	if err != nil {
		return nil, err
	}
	return confirmingTx{tx, c}, nil
}

type confirmingTx struct {
	driver.Tx
	conn *confirmingConn
}

// Commit implements driver.Tx. ErrUnconfirmed.
func (t confirmingTx) Commit() error {
	t.conn.warned = false
	if err := t.Tx.Commit(); err != nil {
		return err
	}
	if t.conn.warned {
		return ErrUnconfirmed
	}
	return nil
}
