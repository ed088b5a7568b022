package activity

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
)

const (
	// pruneBatchRows bounds one batch.
	pruneBatchRows = 1000

	sqlNoteRead = `
INSERT INTO activity_readers AS r (workspace_id, read_seq, noted_at) VALUES ($1, $2, now())
ON CONFLICT (workspace_id) DO UPDATE SET read_seq = excluded.read_seq, noted_at = excluded.noted_at
WHERE r.read_seq < excluded.read_seq AND r.noted_at < now() - interval '1 minute'`

	// sqlPrune deletes rows that are older than $1 and that their workspace has read past, and rows
	// that are older than $2 too. The row that a workspace has read last is its cursor and stays. The
	// lateral join reads one index range for each workspace.
	sqlPrune = `
DELETE FROM activity_logs WHERE id = ANY(ARRAY(
    SELECT id FROM activity_logs WHERE id = ANY(ARRAY(
        SELECT l.id FROM activity_counters c LEFT JOIN activity_readers r USING (workspace_id) CROSS JOIN LATERAL (
            SELECT id FROM activity_logs
            WHERE workspace_id = c.workspace_id AND created_at < now() - $1 * interval '1 microsecond'
            AND (seq < r.read_seq OR created_at < now() - $2 * interval '1 microsecond')
            ORDER BY created_at LIMIT $3
        ) l LIMIT $3
    )) FOR UPDATE SKIP LOCKED
))`

	// sqlPrunable counts the rows that sqlPrune would delete.
	sqlPrunable = `
SELECT count(*) FROM (
    SELECT l.id FROM activity_counters c LEFT JOIN activity_readers r USING (workspace_id) CROSS JOIN LATERAL (
        SELECT id FROM activity_logs
        WHERE workspace_id = c.workspace_id AND created_at < now() - $1 * interval '1 microsecond'
        AND (seq < r.read_seq OR created_at < now() - $2 * interval '1 microsecond')
        ORDER BY created_at LIMIT $3
    ) l LIMIT $3
) old`
)

// noteRead records that the workspace itself has read its inbox up to a row. Read calls it at most
// once a minute, because retention counts in days and a write for every poll would cost more than it
// brings. The record may be behind the workspace, and is never ahead of it.
func (in *Inbox) noteRead(ctx context.Context, workspace uuid.UUID, seq int64) error {
	if _, err := in.db.ExecContext(ctx, sqlNoteRead, workspace, seq); err != nil {
		return fmt.Errorf("activity: record the read position of workspace %s: %w", workspace, err)
	}
	return nil
}

// Prune deletes one batch of rows that are older than retention and that their workspace has read
// past, or that are older than limit too. It returns the number of rows, and whether there may be
// more.
func (in *Inbox) Prune(ctx context.Context, retention, limit time.Duration) (int, bool, error) {
	result, err := in.db.ExecContext(ctx, sqlPrune, retention.Microseconds(), limit.Microseconds(), pruneBatchRows)
	if err != nil {
		return 0, false, fmt.Errorf("activity: prune: %w", err)
	}
	n, _ := result.RowsAffected() // lib/pq always returns it
	return int(n), n == pruneBatchRows, nil
}

// Prunable returns how many rows Prune would delete now in all batches together.
func (in *Inbox) Prunable(ctx context.Context, retention, limit time.Duration) (int, error) {
	var n int
	row := in.db.QueryRowContext(ctx, sqlPrunable, retention.Microseconds(), limit.Microseconds(), int64(1)<<40)
	if err := row.Scan(&n); err != nil {
		return 0, fmt.Errorf("activity: count prunable rows: %w", err)
	}
	return n, nil
}
