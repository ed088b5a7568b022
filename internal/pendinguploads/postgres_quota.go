package pendinguploads

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"
)

const (
	// The function reserve_upload takes the same lock. It is a statement of its own, so that sqlUsage,
	// which follows, sees what was committed while it waited.
	sqlLockUsage = `SELECT pg_advisory_xact_lock(hashtextextended($1, 20260601))`

	sqlUsage = `
SELECT coalesce(sum(u.n), 0), coalesce(sum(u.bytes), 0)
FROM (
  SELECT 1 AS n, size_bytes AS bytes
  FROM pending_uploads
  WHERE workspace_id = $1 AND acked_at IS NULL AND expires_at > clock_timestamp()
  UNION ALL
  SELECT files, bytes
  FROM upload_reservations
  WHERE workspace_id = $1 AND expires_at > clock_timestamp()
) u`

	sqlReserve = `
SELECT reservation, used_files, used_bytes
FROM reserve_upload($1, $2, $3, $4, $5, $6 * interval '1 microsecond')`

	// A reservation that might expire before the commit is not used: for a moment neither it nor the
	// files would count for the quota.
	sqlUseReservation = `
DELETE FROM upload_reservations
WHERE id = $1 AND expires_at > clock_timestamp() + $2 * interval '1 microsecond'`

	sqlRelease = `DELETE FROM upload_reservations WHERE id = $1`
)

const (
	// smallUploadBytes is the maximum size of an upload that is written while its workspace's quota is
	// locked. That takes about as long as the commit, for which the workspace's other uploads wait
	// anyway, and saves two statements for a reservation.
	smallUploadBytes = ChunkBytes

	// reservationTTL is how long an upload may take to be written after it was received. The pool's
	// limits for statements and idle transactions end a stuck one sooner.
	reservationTTL = 20 * time.Minute

	// commitMargin is how much of reservationTTL must be left for the inbox rows and the commit.
	commitMargin = 5 * time.Minute

	// reserveTimeout bounds making a reservation. If the workspace's quota is locked for longer, the
	// upload fails.
	reserveTimeout = 30 * time.Second

	// releaseTimeout bounds deleting a reservation. If that fails, the reservation expires by itself.
	releaseTimeout = 5 * time.Second
)

var errReservationExpired = errors.New("pendinguploads: quota reservation has expired before the commit")

// reserve checks the quota for the files and reserves it, before any content is written. The database
// decides, so this holds for uploads at the same time on all replicas. A small upload holds the lock of
// the quota until tx ends, and needs no reservation. A larger one, and any without tx, gets a
// reservation, which other uploads count. Without a quota there is none.
func (p *Postgres) reserve(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, files []NewFile) (uuid.NullUUID, error) {
	maxFiles, maxBytes := p.limits.QuotaFiles, p.limits.QuotaBytes
	if maxFiles == 0 && maxBytes == 0 || len(files) == 0 {
		return uuid.NullUUID{}, nil
	}
	if maxFiles == 0 {
		maxFiles = math.MaxInt64
	}
	if maxBytes == 0 {
		maxBytes = math.MaxInt64
	}
	count, bytes := int64(len(files)), totalBytes(files)
	small := tx != nil && bytes <= smallUploadBytes
	var reservation uuid.NullUUID
	var usedFiles, usedBytes int64
	var err error
	if small {
		if _, err = tx.ExecContext(ctx, sqlLockUsage, workspace.String()); err == nil {
			err = tx.QueryRowContext(ctx, sqlUsage, workspace).Scan(&usedFiles, &usedBytes)
		}
	} else {
		// Not cancelled by ctx: if the id of a reservation were lost, it would count until it expires.
		err = p.reserving.Do(ctx, workspace, func() error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reserveTimeout)
			defer cancel()
			row := p.sessions.QueryRowContext(ctx, sqlReserve, workspace, count, bytes, maxFiles, maxBytes, reservationTTL.Microseconds())
			return row.Scan(&reservation, &usedFiles, &usedBytes)
		})
	}
	if err != nil {
		return uuid.NullUUID{}, fmt.Errorf("pendinguploads: reserve quota of workspace %s: %w", workspace, err)
	}
	fitsFiles, fitsBytes := count <= maxFiles-usedFiles, bytes <= maxBytes-usedBytes
	if reservation.Valid || small && fitsFiles && fitsBytes {
		return reservation, nil
	}
	exceeded := &QuotaError{What: "bytes", Used: usedBytes, Limit: maxBytes}
	if !fitsFiles {
		exceeded = &QuotaError{What: "files", Used: usedFiles, Limit: maxFiles}
	}
	return uuid.NullUUID{}, fmt.Errorf("pendinguploads: stage for workspace %s: %w", workspace, exceeded)
}

// useReservation deletes the reservation as part of the transaction that commits its files, so that
// they are counted once.
func useReservation(ctx context.Context, tx *sql.Tx, reservation uuid.NullUUID) error {
	if !reservation.Valid {
		return nil
	}
	result, err := tx.ExecContext(ctx, sqlUseReservation, reservation.UUID, commitMargin.Microseconds())
	if err != nil {
		return fmt.Errorf("pendinguploads: use reservation: %w", err)
	}
	if n, _ := result.RowsAffected(); n != 1 { // lib/pq never fails here
		return errReservationExpired
	}
	return nil
}

// release deletes a reservation that was not used, even if ctx has ended.
func (p *Postgres) release(ctx context.Context, reservation uuid.NullUUID) {
	if !reservation.Valid {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	_, _ = p.sessions.ExecContext(ctx, sqlRelease, reservation.UUID)
}
