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
	// What reserve_upload does too. The lock comes first, in a statement of its own, so that the count
	// sees what was committed meanwhile.
	sqlLockUsage = `SELECT pg_advisory_xact_lock(hashtextextended($1, 20260601))`

	sqlUsage = `SELECT coalesce(sum(u.n), 0), coalesce(sum(u.bytes), 0) FROM (` +
		`SELECT 1 AS n, size_bytes AS bytes FROM pending_uploads WHERE workspace_id = $1 AND acked_at IS NULL AND expires_at > clock_timestamp() ` +
		`UNION ALL SELECT files, bytes FROM upload_reservations WHERE workspace_id = $1 AND expires_at > clock_timestamp()) u`

	sqlReserve = `SELECT reservation, used_files, used_bytes FROM reserve_upload($1, $2, $3, $4, $5, $6 * interval '1 microsecond')`

	// Not one that may fall due before the commit: for a moment neither it nor the files would count.
	sqlUseReservation = `DELETE FROM upload_reservations WHERE id = $1 AND expires_at > clock_timestamp() + $2 * interval '1 microsecond'`

	sqlRelease = `DELETE FROM upload_reservations WHERE id = $1`
)

const (
	// atOnceBytes is how long the files of an upload may be together that is written while its
	// workspace's quota is locked. That takes about as long as the commit, for which the workspace's
	// other uploads wait anyway, and saves making a reservation and using it.
	atOnceBytes = ChunkBytes

	// reservationTTL is how long an upload may take to be written once it is off the wire.
	// The pool's limits on a statement and on an idle transaction end a stuck one sooner.
	reservationTTL = 20 * time.Minute

	// commitMargin is how much of that must be left for the inbox rows and the commit.
	commitMargin = 5 * time.Minute

	// reserveTimeout bounds taking room: what locks the workspace's quota for longer is given up.
	reserveTimeout = 30 * time.Second

	// releaseTimeout bounds giving room back; if it fails, the room falls due by itself.
	releaseTimeout = 5 * time.Second
)

// errReservationOver: staging took longer than its reservation lasts.
var errReservationOver = errors.New("pendinguploads: reservation is over")

// reserve takes room for the files, before any byte of them is written. The database
// decides, so it holds for uploads at the same moment on all replicas. A small upload has its
// room until tx ends, or is the files themselves then; a larger one gets a reservation, which
// others see, and so does any without a tx. Where there is no quota there is none.
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
	count, bytes := int64(len(files)), total(files)
	atOnce := tx != nil && bytes <= atOnceBytes
	var room uuid.NullUUID
	var usedFiles, usedBytes int64
	var err error
	if atOnce {
		if _, err = tx.ExecContext(ctx, sqlLockUsage, workspace.String()); err == nil {
			err = tx.QueryRowContext(ctx, sqlUsage, workspace).Scan(&usedFiles, &usedBytes)
		}
	} else {
		// To its end, also if ctx ends meanwhile: room that nobody knows of is given back by nobody.
		err = p.reserving.Do(ctx, workspace, func() error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reserveTimeout)
			defer cancel()
			row := p.sessions.QueryRowContext(ctx, sqlReserve, workspace, count, bytes, maxFiles, maxBytes, reservationTTL.Microseconds())
			return row.Scan(&room, &usedFiles, &usedBytes)
		})
	}
	if err != nil {
		return uuid.NullUUID{}, fmt.Errorf("pendinguploads: reserve room for workspace %s: %w", workspace, err)
	}
	fitsFiles, fitsBytes := count <= maxFiles-usedFiles, bytes <= maxBytes-usedBytes
	if room.Valid || atOnce && fitsFiles && fitsBytes {
		return room, nil
	}
	full := &QuotaError{What: "bytes", Used: usedBytes, Limit: maxBytes}
	if !fitsFiles {
		full = &QuotaError{What: "files", Used: usedFiles, Limit: maxFiles}
	}
	return uuid.NullUUID{}, fmt.Errorf("pendinguploads: stage for workspace %s: %w", workspace, full)
}

// useReservation puts the files in the place of their reservation, as part of the transaction
// that commits them.
func useReservation(ctx context.Context, tx *sql.Tx, room uuid.NullUUID) error {
	if !room.Valid {
		return nil
	}
	result, err := tx.ExecContext(ctx, sqlUseReservation, room.UUID, commitMargin.Microseconds())
	if err != nil {
		return fmt.Errorf("pendinguploads: use reservation: %w", err)
	}
	if n, _ := result.RowsAffected(); n != 1 { // lib/pq always knows it
		return errReservationOver
	}
	return nil
}

// release gives room back that was not used, also if ctx is over.
func (p *Postgres) release(ctx context.Context, room uuid.NullUUID) {
	if !room.Valid {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	_, _ = p.sessions.ExecContext(ctx, sqlRelease, room.UUID)
}
