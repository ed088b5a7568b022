package schema

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"fmt"
	"time"

	"github.com/golang-migrate/migrate/v4/database"
	"github.com/golang-migrate/migrate/v4/database/postgres"
)

const (
	sqlWhere      = `SELECT current_database(), coalesce(current_schema(), '')`
	sqlLock       = `SELECT pg_advisory_lock($1)`
	sqlUnlock     = `SELECT pg_advisory_unlock($1)`
	sqlTryReading = `SELECT pg_try_advisory_xact_lock_shared($1)`
)

// unlockTimeout bounds releasing the lock on a server that may be gone.
const unlockTimeout = 5 * time.Second

// A session is a connection that holds the migration lock.
type session struct {
	options
	series series
	conn   *sql.Conn
	db     *sql.DB // that the connection is of, to look what it waits for
	pid    int     // of its server process
}

// withLock runs f on a connection of its own under the migration lock.
//
// The lock is the very one that golang-migrate takes, so its command line waits for us and
// we for it. It is taken here, not by golang-migrate, which gives up after 15 seconds, cannot
// be cancelled, and takes it twice: to create the version table, and again to migrate.
func (s series) withLock(ctx context.Context, db *sql.DB, o options, f func(*session) error) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("schema: connect: %w", err)
	}
	defer discard(conn)

	where, err := locate(ctx, conn)
	if err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, sqlLock, where.lock); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err() // the driver only knows that its statement was cancelled
		}
		return fmt.Errorf("schema: wait for the migration lock: %w", err)
	}
	defer func() {
		// The end of the session would release it too, but not before the server notices.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTimeout)
		defer cancel()
		_, _ = conn.ExecContext(ctx, sqlUnlock, where.lock)
	}()

	// This creates the version table if it is missing.
	_, err = postgres.WithConnection(ctx, conn, &postgres.Config{DatabaseName: where.database, SchemaName: where.schema})
	if err != nil {
		return fmt.Errorf("schema: create the version table: %w", err)
	}
	c := &session{series: s, conn: conn}
	if err := c.limitLocks(ctx, db, o); err != nil { // not before: it holds for advisory locks too
		return err
	}
	return f(c)
}

// discard closes the connection for good instead of returning it to the pool: whatever
// went wrong, no lock and no setting of a migration outlives it.
func discard(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return sqldriver.ErrBadConn })
	_ = conn.Close()
}

// A place is what golang-migrate derives its lock from.
type place struct{ database, schema, lock string }

func locate(ctx context.Context, q queryer) (place, error) {
	var p place
	if err := q.QueryRowContext(ctx, sqlWhere).Scan(&p.database, &p.schema); err != nil {
		return p, fmt.Errorf("schema: look up the database's name: %w", err)
	}
	lock, err := database.GenerateAdvisoryLockId(p.database, p.schema, postgres.DefaultMigrationsTable)
	if err != nil {
		return p, fmt.Errorf("schema: derive the migration lock: %w", err)
	}
	p.lock = lock
	return p, nil
}

// recover makes the database ready for the next step and returns the version it is at.
// Since the lock is held, a mark of ours was left by a migration that is no longer running,
// and nothing of that was kept: the database is where it came from. A database that this
// platform cannot migrate is left as it is.
func (s *session) recover(ctx context.Context) (uint, error) {
	r, err := readRecord(ctx, s.conn)
	if err != nil {
		return 0, err
	}
	if r.step != nil {
		r.version = r.step.From
	}
	switch {
	case r.dirty && r.step == nil:
		return 0, fmt.Errorf("%w: %w", ErrDirty, dirtyError(r.version))
	case between(r.version):
		return 0, betweenError(r.version)
	case r.version != 0 && !s.series.knows(r.version):
		return 0, fmt.Errorf("%w: the database is at version %d, which this platform does not know; use the newer platform",
			ErrUnknownVersion, r.version)
	case r.step == nil:
		return r.version, nil
	}
	if err := s.force(ctx, r.version); err != nil {
		return 0, fmt.Errorf("schema: go back to %s: %w", s.series.label(r.version), err)
	}
	return r.version, nil
}
