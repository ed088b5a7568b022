package schema

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"

	"github.com/golang-migrate/migrate/v4/database"
	"github.com/golang-migrate/migrate/v4/database/postgres"
	"github.com/lib/pq"
)

const (
	sqlRecord        = `SELECT version, dirty, coalesce(obj_description('schema_migrations'::regclass, 'pg_class'), '') FROM schema_migrations LIMIT 1`
	sqlDeleteVersion = `DELETE FROM schema_migrations`
	sqlInsertVersion = `INSERT INTO schema_migrations (version, dirty) VALUES ($1, $2)`
	sqlSetMark       = `COMMENT ON TABLE schema_migrations IS ` // and a literal: it takes no parameters
)

// A Step is the way from one version to another, 0 being the empty database.
type Step struct{ From, To uint }

// mark is the comment that the version table carries while the step is on its way.
// golang-migrate notes only where a step leads, which is not enough to go back, nor to tell
// the up to a version from the down to it.
func (s Step) mark() string { return fmt.Sprintf(markFormat, s.From, s.To) }

const markFormat = "platform: migrating from %d to %d"

// driver is golang-migrate's PostgreSQL driver with other bookkeeping: what it notes about
// a migration is noted in the migration's own transaction. The database is then marked dirty
// exactly as long as nothing of the step it is on has been kept.
type driver struct {
	*postgres.Postgres
	ctx    context.Context // the caller's, since database.Driver passes none
	conn   *sql.Conn
	target int
}

// Lock does nothing; see withLock.
func (d *driver) Lock() error { return nil }

// Unlock does nothing; see withLock.
func (d *driver) Unlock() error { return nil }

// SetVersion marks the database dirty, and with the step that is about to run. That it is
// clean again has been noted by Run.
func (d *driver) SetVersion(version int, dirty bool) error {
	if !dirty {
		return nil
	}
	d.target = version
	return d.inTx(func(tx *sql.Tx) error {
		r, err := readRecord(d.ctx, tx)
		if err != nil {
			return err
		}
		return writeRecord(d.ctx, tx, version, true, Step{From: r.version, To: apiVersion(version)}.mark())
	})
}

// Run runs a migration and notes that it is done, both or neither.
func (d *driver) Run(migration io.Reader) error {
	body, err := io.ReadAll(migration)
	if err != nil {
		return fmt.Errorf("read the migration: %w", err)
	}
	return d.inTx(func(tx *sql.Tx) error {
		// Without parameters, so that one call may hold many statements.
		if _, err := tx.ExecContext(d.ctx, string(body)); err != nil {
			return err
		}
		return writeRecord(d.ctx, tx, d.target, false, "")
	})
}

// force notes that the database is at version and clean.
func (d *driver) force(version uint) error {
	return d.inTx(func(tx *sql.Tx) error {
		return writeRecord(d.ctx, tx, driverVersion(version), false, "")
	})
}

func (d *driver) inTx(f func(*sql.Tx) error) error {
	tx, err := d.conn.BeginTx(d.ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	if err := f(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// A record is what the version table says.
type record struct {
	version uint
	dirty   bool
	step    *Step // set if dirty, and it was this platform that began the step
}

type queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// readRecord reads the version table, which exists.
func readRecord(ctx context.Context, q queryer) (record, error) {
	var (
		version int
		mark    string
		r       record
	)
	err := q.QueryRowContext(ctx, sqlRecord).Scan(&version, &r.dirty, &mark)
	if errors.Is(err, sql.ErrNoRows) {
		return record{}, nil
	}
	if err != nil {
		return record{}, fmt.Errorf("schema: read the version: %w", err)
	}
	r.version = apiVersion(version)
	// A mark that leads elsewhere is a leftover that another tool has written over.
	var s Step
	if _, err := fmt.Sscanf(mark, markFormat, &s.From, &s.To); err == nil && r.dirty && s.To == r.version {
		r.step = &s
	}
	return r, nil
}

// writeRecord replaces what the version table says. It deletes where golang-migrate
// truncates, so that nobody who reads the version waits for a migration.
func writeRecord(ctx context.Context, tx *sql.Tx, version int, dirty bool, mark string) error {
	if _, err := tx.ExecContext(ctx, sqlDeleteVersion); err != nil {
		return fmt.Errorf("note the version: %w", err)
	}
	if version != database.NilVersion || dirty {
		if _, err := tx.ExecContext(ctx, sqlInsertVersion, version, dirty); err != nil {
			return fmt.Errorf("note the version: %w", err)
		}
	}
	comment := "NULL"
	if mark != "" {
		comment = pq.QuoteLiteral(mark)
	}
	if _, err := tx.ExecContext(ctx, sqlSetMark+comment); err != nil {
		return fmt.Errorf("note the step: %w", err)
	}
	return nil
}

// driverVersion and apiVersion translate between 0 and golang-migrate's -1, no version.
func driverVersion(version uint) int {
	if version == 0 {
		return database.NilVersion
	}
	return int(version)
}

func apiVersion(version int) uint { return uint(max(version, 0)) }
