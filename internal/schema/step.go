package schema

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/lib/pq"
)

const (
	// Two comments say what the version table has no columns for: that of the table which step is under
	// way, that of its first column, version, which migration breaks older platforms.
	sqlRecord = `
SELECT version, dirty,
    coalesce(obj_description('schema_migrations'::regclass, 'pg_class'), ''),
    coalesce(col_description('schema_migrations'::regclass, 1), '')
FROM schema_migrations
LIMIT 1`

	sqlDeleteVersion = `DELETE FROM schema_migrations`
	sqlInsertVersion = `INSERT INTO schema_migrations (version, dirty) VALUES ($1, $2)`

	// A literal follows each: they take no parameters.
	sqlSetMark     = `COMMENT ON TABLE schema_migrations IS `
	sqlSetBreaking = `COMMENT ON COLUMN schema_migrations.version IS `
)

const (
	markFormat     = "platform: migrating from %d to %d"
	breakingFormat = "platform: migration %d breaks older platforms"
)

// noVersion is how golang-migrate writes that no migration is applied.
const noVersion = -1

// A Step is the way from one version to another, 0 being the empty database.
type Step struct{ From, To uint }

// mark is the comment that the version table carries while the step is under way. golang-migrate
// records only where a step leads, which is not enough to go back, nor to distinguish the up to a version from the
// down to it.
func (s Step) mark() string { return fmt.Sprintf(markFormat, s.From, s.To) }

// run takes a step by running its SQL. The database is marked dirty for as long as nothing of the step has been kept:
// that it is done is recorded in the transaction of the step itself. A step that meets a locked table is tried again.
func (s *session) run(ctx context.Context, step Step, statements string) error {
	return s.retry(ctx, func() error { return s.try(ctx, step, statements) })
}

func (s *session) try(ctx context.Context, step Step, statements string) error {
	err := s.inTx(ctx, func(tx *sql.Tx) error { return writeVersion(ctx, tx, step.To, true, step.mark()) })
	if err != nil {
		return err
	}
	return s.inTx(ctx, func(tx *sql.Tx) error {
		// Without parameters, so that one call may hold many statements.
		if _, err := tx.ExecContext(ctx, statements); err != nil {
			return err
		}
		return s.settle(ctx, tx, step.To)
	})
}

// force records that the database is at version and clean.
func (s *session) force(ctx context.Context, version uint) error {
	return s.inTx(ctx, func(tx *sql.Tx) error { return s.settle(ctx, tx, version) })
}

// settle records that the database is at version, which is known, and clean.
func (s *session) settle(ctx context.Context, tx *sql.Tx, version uint) error {
	if err := writeVersion(ctx, tx, version, false, ""); err != nil {
		return err
	}
	breaking := ""
	if v := s.series.breaking(version); v != 0 {
		breaking = fmt.Sprintf(breakingFormat, v)
	}
	return comment(ctx, tx, sqlSetBreaking, breaking)
}

func (s *session) inTx(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.conn.BeginTx(ctx, nil)
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
	version  uint
	dirty    bool
	step     *Step // set if dirty, and it was this platform that began the step
	breaking uint  // newest applied migration that breaks older platforms, 0 for none
}

type queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// readRecord reads the version table, which exists.
func readRecord(ctx context.Context, q queryer) (record, error) {
	var (
		version        int
		mark, breaking string
		r              record
	)
	err := q.QueryRowContext(ctx, sqlRecord).Scan(&version, &r.dirty, &mark, &breaking)
	if errors.Is(err, sql.ErrNoRows) {
		return record{}, nil
	}
	if err != nil {
		return record{}, fmt.Errorf("schema: read the version: %w", err)
	}
	r.version = uint(max(version, 0))
	// A mark that leads elsewhere is a leftover that another tool has written over.
	var s Step
	if _, err := fmt.Sscanf(mark, markFormat, &s.From, &s.To); err == nil && r.dirty && s.To == r.version {
		r.step = &s
	}
	_, _ = fmt.Sscanf(breaking, breakingFormat, &r.breaking) // any other comment says nothing about migrations
	return r, nil
}

// writeVersion replaces what the version table says. It deletes where golang-migrate truncates, because TRUNCATE would
// make everyone who reads the version wait for the migration.
func writeVersion(ctx context.Context, tx *sql.Tx, version uint, dirty bool, mark string) error {
	if _, err := tx.ExecContext(ctx, sqlDeleteVersion); err != nil {
		return fmt.Errorf("record the version: %w", err)
	}
	if version != 0 || dirty {
		n := int(version)
		if version == 0 {
			n = noVersion
		}
		if _, err := tx.ExecContext(ctx, sqlInsertVersion, n, dirty); err != nil {
			return fmt.Errorf("record the version: %w", err)
		}
	}
	return comment(ctx, tx, sqlSetMark, mark)
}

// comment sets a comment, or removes it if text is "".
func comment(ctx context.Context, tx *sql.Tx, set, text string) error {
	literal := "NULL"
	if text != "" {
		literal = pq.QuoteLiteral(text)
	}
	if _, err := tx.ExecContext(ctx, set+literal); err != nil {
		return fmt.Errorf("record the version: %w", err)
	}
	return nil
}
