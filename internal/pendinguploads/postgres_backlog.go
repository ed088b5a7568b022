package pendinguploads

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

const (
	// An index of the unacknowledged files answers it, so its cost grows with the backlog, not with the
	// table: measured, 10 ms for 100,000 files.
	sqlBacklog = `
SELECT count(*), coalesce(sum(size_bytes), 0)
FROM pending_uploads
WHERE acked_at IS NULL AND expires_at > now()`

	// All files have the same TTL, so the first to expire is the oldest. Expiry has an index; age has none.
	sqlBacklogOldest = `
SELECT extract(epoch FROM clock_timestamp() - created_at) * 1000000
FROM pending_uploads
WHERE acked_at IS NULL AND expires_at > now()
ORDER BY expires_at
LIMIT 1`
)

// Backlog counts the unacknowledged, unexpired files of all workspaces.
type Backlog struct {
	Files, Bytes int64
	Oldest       time.Duration // age of the oldest of them; 0: there are none
}

// ReadBacklog reads the backlog from the database.
func ReadBacklog(ctx context.Context, db *sql.DB) (Backlog, error) {
	var b Backlog
	if err := db.QueryRowContext(ctx, sqlBacklog).Scan(&b.Files, &b.Bytes); err != nil {
		return Backlog{}, fmt.Errorf("pendinguploads: count backlog: %w", err)
	}
	var micros float64
	if err := db.QueryRowContext(ctx, sqlBacklogOldest).Scan(&micros); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Backlog{}, fmt.Errorf("pendinguploads: age of oldest file in backlog: %w", err)
	}
	b.Oldest = max(time.Duration(micros)*time.Microsecond, 0)
	return b, nil
}
