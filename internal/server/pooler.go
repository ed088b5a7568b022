package server

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

const (
	// maxSessions is how many connections go past a pooler for what an upload does beside its
	// transaction, and to reclaim room.
	maxSessions = 3

	// maxWatchingConns are for the metrics, which one scrape at a time counts, and for /readyz.
	maxWatchingConns = 2

	// poolerRounds is how often two connections compare their sessions.
	poolerRounds = 3

	poolerAdvice = "if it is a pooler in transaction mode, such as PgBouncer, write PostgreSQL's own address into DATABASE_DIRECT_URL as well; " +
		"docs/operations.md, \"PgBouncer\", tells how"
)

const (
	sqlSession = `SELECT pg_backend_pid()`

	sqlLimits = `SELECT current_setting('lock_timeout') = '0' OR current_setting('idle_in_transaction_session_timeout') = '0' ` +
		`OR current_setting('statement_timeout') = '0'`
)

// openPools opens the pools. Through a pooler in transaction mode a connection has a session only
// for as long as a transaction, or a statement outside of one, lasts: so every statement goes in
// one round trip and without a name, no session has settings, and what needs one goes past the pooler.
func (s *Server) openPools(dsn string) (err error) {
	s.direct = dsn
	serving := func(n int, options ...poolOption) (*sql.DB, error) {
		return openPool(dsn, n, append(options, bounded)...)
	}
	if s.config.DatabaseDirectURL != "" {
		s.direct = s.config.DatabaseDirectURL
		serving = func(n int, _ ...poolOption) (*sql.DB, error) { return openPooled(dsn, n) }
		if s.sessions, err = openPool(s.direct, maxSessions, bounded); err != nil {
			return err
		}
	}
	if s.db, err = serving(maxConns); err != nil {
		return err
	}
	if s.staging, err = serving(maxStagingConns, binary); err != nil {
		return err
	}
	if s.watching, err = serving(maxWatchingConns); err != nil {
		return err
	}
	s.telling, err = openPool(s.direct, 1, bounded, unsynced)
	return err
}

// openPooled opens a pool of at most n connections through a pooler in transaction mode. With binary
// parameters lib/pq sends a statement in one round trip and does not name it; it reads bytes as
// hex then.
func openPooled(dsn string, n int) (*sql.DB, error) {
	connector, err := newConnector(dsn, binary)
	if err != nil {
		return nil, err
	}
	return sized(connector, n), nil
}

// checkSessions makes sure that what needs a session of PostgreSQL has one, and says so if a
// pooler's sessions have no limits.
func (s *Server) checkSessions(ctx context.Context) error {
	name, db := "DATABASE_URL", s.db
	if s.sessions != nil {
		name, db = "DATABASE_DIRECT_URL", s.sessions
		if err := db.PingContext(ctx); err != nil {
			return fmt.Errorf("the database of DATABASE_DIRECT_URL cannot be reached: %w", err)
		}
	}
	shared, err := sharesSessions(ctx, db)
	switch {
	case err != nil:
		return fmt.Errorf("the database of %s cannot be used: %w", name, err)
	case shared && s.sessions != nil:
		return errors.New("DATABASE_DIRECT_URL leads to a pooler in transaction mode; write the address of PostgreSQL itself")
	case shared:
		return errors.New("DATABASE_URL leads to a pooler in transaction mode; " + poolerAdvice)
	case s.sessions == nil:
		return nil
	}
	var unlimited bool
	if err := s.db.QueryRowContext(ctx, sqlLimits).Scan(&unlimited); err != nil {
		return fmt.Errorf("the database of DATABASE_URL cannot be used: %w", err)
	}
	if unlimited {
		s.log.WarnContext(ctx, "the pooler's sessions have no limit of time, so a replica that freezes may block others for good; "+
			`set its connect_query as docs/operations.md, "PgBouncer", has it`)
	}
	return nil
}

// sharesSessions reports whether two connections that are open at the same time have the same
// session of PostgreSQL, which only a pooler can bring about. It may miss that if the pooler is busy.
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
	owner := map[int]int{} // of a session
	for range poolerRounds {
		for i, conn := range conns {
			var pid int
			if err := conn.QueryRowContext(ctx, sqlSession).Scan(&pid); err != nil {
				return false, err
			}
			if first, known := owner[pid]; known && first != i {
				return true, nil
			}
			owner[pid] = i
		}
	}
	return false, nil
}
