package database

import (
	"context"
	"database/sql/driver"
	"errors"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// maxPrepared is how many statements a connection keeps prepared. The platform has fewer that run all the time, but
// the parameters of an inbox read combine into many.
const maxPrepared = 100

// prepareOnce returns connections of c, which must be lib/pq's, that prepare each statement once.
//
// Without it lib/pq sends a statement with parameters in two round trips, the first of which makes PostgreSQL parse it,
// every time. database/sql's own prepared statements would need an object at each call site; here the callers pass text
// and values as usual, and each connection keeps what it has prepared. Measured on 2 busy cores: reading a row by its
// key takes a third of the time.
//
// When PostgreSQL reports that a prepared statement is no longer valid, after a change of the schema for example, the
// connection is dropped and database/sql takes another.
func prepareOnce(c driver.Connector) driver.Connector {
	return wrapConns(c, func(conn pqConn) driver.Conn {
		return &preparedConn{pqConn: conn, statements: map[string]statement{}}
	})
}

type statement interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// preparedConn is one connection. database/sql never uses one for two things at once.
type preparedConn struct {
	pqConn
	statements map[string]statement
	lastCtx    context.Context // of the last statement, until the connection is back in the pool
	stale      bool            // one of its statements is no longer valid
}

// IsValid implements driver.Validator: whether the pool may keep the connection, asked when it is returned.
//
// A connection is dropped if the context of its last statement has ended. lib/pq has then sent PostgreSQL a request to
// cancel that statement, and does not wait for it to arrive: at a server that hangs, it may arrive while the connection
// works for another caller.
func (c *preparedConn) IsValid() bool {
	cancelled := c.lastCtx != nil && c.lastCtx.Err() != nil
	c.lastCtx = nil
	return !cancelled && !c.stale && c.pqConn.IsValid()
}

// QueryContext implements driver.QueryerContext.
func (c *preparedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if len(args) == 0 { // lib/pq sends these in one round trip already
		return c.pqConn.QueryContext(ctx, query, args)
	}
	s, err := c.prepare(ctx, query)
	if err != nil {
		return nil, err
	}
	rows, err := s.QueryContext(ctx, args)
	return rows, c.checkStale(err)
}

// ExecContext implements driver.ExecerContext.
func (c *preparedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if len(args) == 0 {
		return c.pqConn.ExecContext(ctx, query, args)
	}
	s, err := c.prepare(ctx, query)
	if err != nil {
		return nil, err
	}
	result, err := s.ExecContext(ctx, args)
	return result, c.checkStale(err)
}

func (c *preparedConn) prepare(ctx context.Context, query string) (statement, error) {
	c.lastCtx = ctx
	if s, ok := c.statements[query]; ok {
		return s, nil
	}
	if len(c.statements) == maxPrepared {
		for text, s := range c.statements { // evict any one; a statement in use is soon prepared again
			delete(c.statements, text)
			if err := s.Close(); err != nil {
				return nil, err
			}
			break
		}
	}
	prepared, err := c.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	s, ok := prepared.(statement)
	if !ok {
		return nil, errors.Join(errors.New("database: not a statement of lib/pq"), prepared.Close())
	}
	c.statements[query] = s
	return s, nil
}

// checkStale turns the error of a statement that is no longer valid into driver.ErrBadConn, on which database/sql
// retries on another connection. PostgreSQL reports these errors before it does anything, so a retry is safe. Inside a
// transaction there is no other connection: the transaction fails, and the connection is dropped after it.
func (c *preparedConn) checkStale(err error) error {
	// The first follows a DISCARD or DEALLOCATE, the second an ALTER of a table that the statement reads.
	if pq.As(err, pqerror.InvalidSQLStatementName, pqerror.FeatureNotSupported) != nil {
		c.stale = true
		return driver.ErrBadConn
	}
	return err
}
