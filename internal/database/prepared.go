// Package prepared makes the connections of a pool prepare each statement once.
//
// Without it, lib/pq sends a statement with parameters in two round trips, the first of which has
// PostgreSQL parse it and is repeated every time; and database/sql offers to prepare statements
// only where they are used, one object for each. Here the pool's users go on as they are: they
// pass text and values, and each connection keeps what it has prepared. Measured on 2 busy cores:
// a statement that finds a row by its key takes a third of the time.
//
// A connection forgets its statements if PostgreSQL says that one is not valid any more, after a
// change of the schema for example: then it is dropped, and database/sql takes another.
package database

import (
	"context"
	"database/sql/driver"
	"errors"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// most is how many statements a connection keeps. There are fewer in the platform that are in use
// all the time, but what an inbox is asked for can be combined in many ways.
const most = 100

// Prepared returns connections of c that prepare each statement once. They must be lib/pq's.
func Prepared(c driver.Connector) driver.Connector {
	return wrapConns(c, func(full pqConn) driver.Conn {
		return &preparedConn{pqConn: full, statements: map[string]statement{}}
	})
}

type statement interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// preparedConn is one connection, which database/sql never uses for two things at once.
type preparedConn struct {
	pqConn
	statements map[string]statement
	asked      context.Context //nolint:containedctx // of the last statement, until the connection is back in the pool
	broken     bool            // it has a statement that cannot be used any more
}

// IsValid implements driver.Validator: it says whether the pool may keep the connection, when it is back.
//
// It may not if the last statement's context has ended. lib/pq has then asked PostgreSQL to cancel that
// statement and gives no thought to when this arrives: at a server that was hanging, it may be while
// the connection works for somebody else.
func (c *preparedConn) IsValid() bool {
	cancelled := c.asked != nil && c.asked.Err() != nil
	c.asked = nil
	return !cancelled && !c.broken && c.pqConn.IsValid()
}

// QueryContext implements driver.QueryerContext.
func (c *preparedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if len(args) == 0 { // lib/pq sends it in one round trip as it is
		return c.pqConn.QueryContext(ctx, query, args)
	}
	s, err := c.prepare(ctx, query)
	if err != nil {
		return nil, err
	}
	rows, err := s.QueryContext(ctx, args)
	return rows, c.stale(err)
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
	return result, c.stale(err)
}

func (c *preparedConn) prepare(ctx context.Context, query string) (statement, error) {
	c.asked = ctx
	if s, ok := c.statements[query]; ok {
		return s, nil
	}
	if len(c.statements) == most {
		for text, s := range c.statements { // any; the ones in use are back soon
			delete(c.statements, text)
			if err := s.Close(); err != nil {
				return nil, err
			}
			break
		}
	}
	made, err := c.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	s, ok := made.(statement)
	if !ok {
		return nil, errors.Join(errors.New("prepared: not a statement of lib/pq"), made.Close())
	}
	c.statements[query] = s
	return s, nil
}

// stale turns the errors of a statement that cannot be used any more, which PostgreSQL reports
// before it does anything, into the one by which database/sql takes another connection. In a transaction
// it cannot; then the transaction fails, and the connection goes when that has ended.
func (c *preparedConn) stale(err error) error {
	// The first after somebody's DISCARD or DEALLOCATE, the second when a table it reads was altered.
	if pq.As(err, pqerror.InvalidSQLStatementName, pqerror.FeatureNotSupported) != nil {
		c.broken = true
		return driver.ErrBadConn
	}
	return err
}
