package pendinguploads

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"
)

const (
	// sweepFiles and sweepBytes bound one batch, and with it how long its locks are held.
	sweepFiles = 200
	sweepBytes = 64 << 20

	// sweepRows is how many reservations and keys are in one batch: they are small.
	sweepRows = 2000

	// Each kind has a partial index that begins with its oldest.
	sqlSweepAcked   = `SELECT file_id, size_bytes FROM pending_uploads WHERE acked_at < now() - $1 * interval '1 microsecond' ORDER BY acked_at`
	sqlSweepExpired = `SELECT file_id, size_bytes FROM pending_uploads WHERE acked_at IS NULL AND expires_at <= now() - $1 * interval '1 microsecond' ORDER BY expires_at`

	// sqlSweep has one hole: which files. A file longer than a batch is a batch of its own. Those
	// that another replica is deleting, and those that are being acknowledged, are skipped.
	sqlSweep = `WITH picked AS MATERIALIZED (%s LIMIT $2 FOR UPDATE SKIP LOCKED), batch AS (
    SELECT file_id, sum(size_bytes) OVER (ORDER BY file_id) - size_bytes AS bytes_before FROM picked
), gone AS (
    DELETE FROM pending_uploads WHERE file_id = ANY(ARRAY(SELECT file_id FROM batch WHERE bytes_before < $3)) RETURNING size_bytes
)
SELECT count(*), coalesce(sum(size_bytes), 0), (SELECT count(*) FROM picked) FROM gone`

	sqlSweepReservations = `DELETE FROM upload_reservations WHERE id = ANY(ARRAY(` +
		`SELECT id FROM upload_reservations WHERE expires_at <= now() LIMIT $1 FOR UPDATE SKIP LOCKED))`

	// A key that is over may be taken again at this moment; then it is locked, and stays.
	sqlSweepKeys = `DELETE FROM upload_keys WHERE ctid = ANY(ARRAY(` +
		`SELECT ctid FROM upload_keys WHERE expires_at <= now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))`

	sqlSweepable = `SELECT count(*) FILTER (WHERE acked_at IS NOT NULL), count(*) FILTER (WHERE acked_at IS NULL), ` +
		`coalesce(sum(size_bytes) FILTER (WHERE acked_at IS NOT NULL), 0), coalesce(sum(size_bytes) FILTER (WHERE acked_at IS NULL), 0) ` +
		`FROM pending_uploads WHERE acked_at < now() - $1 * interval '1 microsecond' OR acked_at IS NULL AND expires_at <= now()`

	// The pool's limit is for statements that somebody waits for. One replica at a time is enough.
	sqlBeginReclaim = `SELECT set_config('statement_timeout', '0', false) IS NOT NULL AND pg_try_advisory_lock(20260601, 1)`

	// Autovacuum looks once a minute, in which gigabytes come and go. If it is at it, it gives way
	// after a second: to skip what it has locked would be to wait for it, and it takes minutes.
	sqlReclaim = `VACUUM pending_uploads, pending_upload_chunks`

	// Not DISCARD ALL: who has the connection next counts on the statements that it has prepared.
	sqlEndReclaim = `SELECT pg_advisory_unlock_all(); RESET statement_timeout`
)

// Sweep implements Storage.
func (p *Postgres) Sweep(ctx context.Context, retention time.Duration) (Swept, error) {
	var s Swept
	var err error
	if s.Acked, s.AckedBytes, err = p.sweepFiles(ctx, sqlSweepAcked, retention, &s.More); err != nil {
		return s, fmt.Errorf("pendinguploads: sweep acknowledged files: %w", err)
	}
	if s.Expired, s.ExpiredBytes, err = p.sweepFiles(ctx, sqlSweepExpired, 0, &s.More); err != nil {
		return s, fmt.Errorf("pendinguploads: sweep expired files: %w", err)
	}
	if err := p.sweepRows(ctx, sqlSweepReservations, &s.More); err != nil {
		return s, fmt.Errorf("pendinguploads: sweep reservations: %w", err)
	}
	if err := p.sweepRows(ctx, sqlSweepKeys, &s.More); err != nil {
		return s, fmt.Errorf("pendinguploads: sweep keys: %w", err)
	}
	return s, nil
}

// sweepFiles deletes a batch of the files that have been over for longer than age, and sets
// more if it was full.
func (p *Postgres) sweepFiles(ctx context.Context, which string, age time.Duration, more *bool) (files int, bytes int64, err error) {
	var picked int
	row := p.db.QueryRowContext(ctx, fmt.Sprintf(sqlSweep, which), age.Microseconds(), sweepFiles, sweepBytes)
	if err := row.Scan(&files, &bytes, &picked); err != nil {
		return 0, 0, err
	}
	*more = *more || picked == sweepFiles || picked > files
	return files, bytes, nil
}

// sweepRows deletes a batch of rows, and sets more if it was full.
func (p *Postgres) sweepRows(ctx context.Context, statement string, more *bool) error {
	result, err := p.db.ExecContext(ctx, statement, sweepRows)
	if err != nil {
		return err
	}
	n, _ := result.RowsAffected() // lib/pq always knows it
	*more = *more || n == sweepRows
	return nil
}

// Sweepable implements Storage.
func (p *Postgres) Sweepable(ctx context.Context, retention time.Duration) (Swept, error) {
	var s Swept
	row := p.db.QueryRowContext(ctx, sqlSweepable, retention.Microseconds())
	if err := row.Scan(&s.Acked, &s.Expired, &s.AckedBytes, &s.ExpiredBytes); err != nil {
		return Swept{}, fmt.Errorf("pendinguploads: look what is over: %w", err)
	}
	return s, nil
}

// Reclaim implements Storage.
func (p *Postgres) Reclaim(ctx context.Context) error {
	conn, err := p.sessions.Conn(ctx)
	if err != nil {
		return fmt.Errorf("pendinguploads: reclaim: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		defer cancel()
		if _, err := conn.ExecContext(ctx, sqlEndReclaim); err != nil {
			_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // not back to the pool as it is
		}
		_ = conn.Close()
	}()
	var alone bool
	if err := conn.QueryRowContext(ctx, sqlBeginReclaim).Scan(&alone); err != nil {
		return fmt.Errorf("pendinguploads: reclaim: %w", err)
	}
	if !alone {
		return nil
	}
	if _, err := conn.ExecContext(ctx, sqlReclaim); err != nil {
		return fmt.Errorf("pendinguploads: reclaim: %w", err)
	}
	return nil
}
