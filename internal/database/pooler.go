package database

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
)

// comparisonRounds is how often two connections compare their sessions.
const comparisonRounds = 3

const poolerAdvice = "if it is a pooler in transaction mode, such as PgBouncer, write PostgreSQL's own address into DATABASE_DIRECT_URL as well; " +
	`see docs/replicas.md, "PgBouncer"`

const (
	sqlBackendPID = `SELECT pg_backend_pid()`

	sqlUnlimited = `
		SELECT current_setting('lock_timeout') = '0'
			OR current_setting('idle_in_transaction_session_timeout') = '0'
			OR current_setting('statement_timeout') = '0'`
)

// openPooled opens a pool of at most n connections to a pooler in transaction mode. There a connection has a session of
// PostgreSQL only for the length of a transaction, or of a statement outside of one. So a statement must go in one round
// trip and without a name, which is what binary parameters do, and no session can have settings of its own. lib/pq
// reads bytes as hex then.
func openPooled(url string, n int) (*sql.DB, error) {
	connector, err := newConnector(url, binaryParameters)
	if err != nil {
		return nil, err
	}
	return newPool(connector, n), nil
}

// checkSessions returns an error if the pool Sessions does not get a session for each connection, and warns if a
// pooler's sessions have no time limits.
func (p *Pools) checkSessions(ctx context.Context, log *slog.Logger) error {
	name := "DATABASE_URL"
	if p.direct {
		name = "DATABASE_DIRECT_URL"
		if err := p.Sessions.PingContext(ctx); err != nil {
			return fmt.Errorf("the database of DATABASE_DIRECT_URL cannot be reached: %w", err)
		}
	}
	shared, err := sharesSessions(ctx, p.Sessions)
	switch {
	case err != nil:
		return fmt.Errorf("the database of %s cannot be used: %w", name, err)
	case shared && p.direct:
		return errors.New("DATABASE_DIRECT_URL leads to a pooler in transaction mode; write the address of PostgreSQL itself")
	case shared:
		return errors.New("DATABASE_URL leads to a pooler in transaction mode; " + poolerAdvice)
	case !p.direct:
		return nil
	}
	var unlimited bool
	if err := p.Queries.QueryRowContext(ctx, sqlUnlimited).Scan(&unlimited); err != nil {
		return fmt.Errorf("the database of DATABASE_URL cannot be used: %w", err)
	}
	if unlimited {
		log.WarnContext(ctx, "the pooler's sessions have no time limits, so a replica that freezes may block the others indefinitely; "+
			`set the pooler's connect_query as in docs/replicas.md, "PgBouncer"`)
	}
	return nil
}

// sharesSessions reports whether two connections that are open at the same time use the same session of PostgreSQL,
// which only a pooler can cause. It may miss a pooler that is busy.
func sharesSessions(ctx context.Context, db *sql.DB) (bool, error) {
	var conns [2]*sql.Conn
	for i := range conns {
		conn, err := db.Conn(ctx)
		if err != nil {
			return false, err
		}
		defer conn.Close()
		conns[i] = conn
	}
	connOf := map[int]int{} // by the session's process id
	for range comparisonRounds {
		for i, conn := range conns {
			var pid int
			if err := conn.QueryRowContext(ctx, sqlBackendPID).Scan(&pid); err != nil {
				return false, err
			}
			if other, seen := connOf[pid]; seen && other != i {
				return true, nil
			}
			connOf[pid] = i
		}
	}
	return false, nil
}
