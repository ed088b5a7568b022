package pendinguploads

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

const (
	// By one of the indexes of unacknowledged files, so it costs what the backlog is long, not the
	// table: measured, 10 ms for 100,000 files.
	sqlBacklog = `SELECT count(*), coalesce(sum(size_bytes), 0) FROM pending_uploads WHERE acked_at IS NULL AND expires_at > now()`

	// All wait equally long, so the first to expire is the oldest, and there is an index of that.
	sqlBacklogOldest = `SELECT extract(epoch FROM clock_timestamp() - created_at) * 1000000 FROM pending_uploads ` +
		`WHERE acked_at IS NULL AND expires_at > now() ORDER BY expires_at LIMIT 1`
)

// Backlog is what waits to be acknowledged, of all workspaces.
type Backlog struct {
	Files, Bytes int64
	Oldest       time.Duration // since its oldest file was staged; 0 if there is none
}

// ReadBacklog asks the database for the backlog.
func ReadBacklog(ctx context.Context, db *sql.DB) (Backlog, error) {
	var b Backlog
	if err := db.QueryRowContext(ctx, sqlBacklog).Scan(&b.Files, &b.Bytes); err != nil {
		return Backlog{}, fmt.Errorf("pendinguploads: count backlog: %w", err)
	}
	var micros float64
	if err := db.QueryRowContext(ctx, sqlBacklogOldest).Scan(&micros); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Backlog{}, fmt.Errorf("pendinguploads: oldest of backlog: %w", err)
	}
	b.Oldest = max(time.Duration(micros)*time.Microsecond, 0)
	return b, nil
}
