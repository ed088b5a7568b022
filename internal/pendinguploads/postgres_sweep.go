package pendinguploads

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"
)

const (
	// sweepFiles and sweepBytes bound a batch of files, and so how long it holds its locks. A file
	// larger than sweepBytes is a batch of its own.
	sweepFiles = 200
	sweepBytes = 64 << 20

	// sweepRows is the size of a batch of reservations or keys, which are small.
	sweepRows = 2000

	// The two statements differ in their first condition, and each reads the partial index of its
	// condition, oldest first. They skip rows that another replica is deleting or a workspace is
	// acknowledging.
	sqlSweepAcked = `
WITH picked AS MATERIALIZED (
  SELECT file_id, size_bytes
  FROM pending_uploads
  WHERE acked_at < now() - $1 * interval '1 microsecond'
  ORDER BY acked_at
  LIMIT $2 FOR UPDATE SKIP LOCKED
), batch AS (
  SELECT file_id, sum(size_bytes) OVER (ORDER BY file_id) - size_bytes AS bytes_before FROM picked
), gone AS (
  DELETE FROM pending_uploads
  WHERE file_id = ANY(ARRAY(SELECT file_id FROM batch WHERE bytes_before < $3))
  RETURNING size_bytes
)
SELECT count(*), coalesce(sum(size_bytes), 0), (SELECT count(*) FROM picked) FROM gone`

	sqlSweepExpired = `
WITH picked AS MATERIALIZED (
  SELECT file_id, size_bytes
  FROM pending_uploads
  WHERE acked_at IS NULL AND expires_at <= now() - $1 * interval '1 microsecond'
  ORDER BY expires_at
  LIMIT $2 FOR UPDATE SKIP LOCKED
), batch AS (
  SELECT file_id, sum(size_bytes) OVER (ORDER BY file_id) - size_bytes AS bytes_before FROM picked
), gone AS (
  DELETE FROM pending_uploads
  WHERE file_id = ANY(ARRAY(SELECT file_id FROM batch WHERE bytes_before < $3))
  RETURNING size_bytes
)
SELECT count(*), coalesce(sum(size_bytes), 0), (SELECT count(*) FROM picked) FROM gone`

	sqlSweepReservations = `
DELETE FROM upload_reservations
WHERE id = ANY(ARRAY(
  SELECT id FROM upload_reservations WHERE expires_at <= now() LIMIT $1 FOR UPDATE SKIP LOCKED
))`

	// An expired key that an upload is taking again at this moment is locked, and so it stays.
	sqlSweepKeys = `
DELETE FROM upload_keys
WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM upload_keys WHERE expires_at <= now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
))`

	sqlSweepable = `
SELECT count(*) FILTER (WHERE acked_at IS NOT NULL),
  count(*) FILTER (WHERE acked_at IS NULL),
  coalesce(sum(size_bytes) FILTER (WHERE acked_at IS NOT NULL), 0),
  coalesce(sum(size_bytes) FILTER (WHERE acked_at IS NULL), 0)
FROM pending_uploads
WHERE acked_at < now() - $1 * interval '1 microsecond' OR acked_at IS NULL AND expires_at <= now()`

	// The pool's statement_timeout is for statements that a client waits for; VACUUM takes longer. One
	// replica at a time is enough.
	sqlBeginReclaim = `SELECT set_config('statement_timeout', '0', false) IS NOT NULL AND pg_try_advisory_lock(20260601, 1)`

	// Autovacuum starts once a minute, and gigabytes come and go in that time. If it is running on a
	// table, it yields to this statement after a second. SKIP_LOCKED would leave the table to it instead,
	// and it takes minutes.
	sqlReclaim = `VACUUM pending_uploads, pending_upload_chunks`

	// Not DISCARD ALL: the next user of the connection relies on its prepared statements.
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

// sweepFiles deletes a batch of the files that were acknowledged or have expired more than age ago. It
// sets more if the batch was full.
func (p *Postgres) sweepFiles(ctx context.Context, statement string, age time.Duration, more *bool) (files int, bytes int64, err error) {
	var picked int
	row := p.db.QueryRowContext(ctx, statement, age.Microseconds(), sweepFiles, sweepBytes)
	if err := row.Scan(&files, &bytes, &picked); err != nil {
		return 0, 0, err
	}
	*more = *more || picked == sweepFiles || picked > files
	return files, bytes, nil
}

// sweepRows deletes a batch of rows. It sets more if the batch was full.
func (p *Postgres) sweepRows(ctx context.Context, statement string, more *bool) error {
	result, err := p.db.ExecContext(ctx, statement, sweepRows)
	if err != nil {
		return err
	}
	n, _ := result.RowsAffected() // lib/pq never fails here
	*more = *more || n == sweepRows
	return nil
}

// Sweepable implements Storage.
func (p *Postgres) Sweepable(ctx context.Context, retention time.Duration) (Swept, error) {
	var s Swept
	row := p.db.QueryRowContext(ctx, sqlSweepable, retention.Microseconds())
	if err := row.Scan(&s.Acked, &s.Expired, &s.AckedBytes, &s.ExpiredBytes); err != nil {
		return Swept{}, fmt.Errorf("pendinguploads: count files to sweep: %w", err)
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
			_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // closes it: it has no statement_timeout
		}
		_ = conn.Close()
	}()
	var locked bool
	if err := conn.QueryRowContext(ctx, sqlBeginReclaim).Scan(&locked); err != nil {
		return fmt.Errorf("pendinguploads: reclaim: %w", err)
	}
	if !locked {
		return nil
	}
	if _, err := conn.ExecContext(ctx, sqlReclaim); err != nil {
		return fmt.Errorf("pendinguploads: reclaim: %w", err)
	}
	return nil
}
