package activity

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
)

const (
	// pruneBatchRows and pruneBatchInboxes bound one batch, and so how long a workspace waits that
	// records its read position meanwhile.
	pruneBatchRows    = 1000
	pruneBatchInboxes = 500

	sqlNoteRead = `
INSERT INTO activity_readers AS r (workspace_id, read_seq, noted_at) VALUES ($1, $2, now())
ON CONFLICT (workspace_id) DO UPDATE SET read_seq = excluded.read_seq, noted_at = excluded.noted_at
WHERE r.read_seq < excluded.read_seq AND r.noted_at < now() - interval '1 minute'`

	// sqlPrune deletes one batch. The function is in the migration inbox_pruning: it finds the inboxes that
	// have something to delete by index, so the cost is that of the rows deleted, however many others there are.
	sqlPrune = `
SELECT pruned, more FROM prune_inboxes($1 * interval '1 microsecond', $2 * interval '1 microsecond', $3, $4)`

	// sqlPrunable counts the rows that are to be deleted, by their definition: it reads every inbox.
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
// past, or that are older than limit too. The row that a workspace has read last is its cursor and
// is not past. It returns the number of rows, and whether there is more to delete that no concurrent
// call is deleting. A row that another transaction has locked is left for a call a minute later.
func (in *Inbox) Prune(ctx context.Context, retention, limit time.Duration) (n int, more bool, err error) {
	row := in.db.QueryRowContext(ctx, sqlPrune, retention.Microseconds(), limit.Microseconds(), pruneBatchRows, pruneBatchInboxes)
	if err := row.Scan(&n, &more); err != nil {
		return 0, false, fmt.Errorf("activity: prune: %w", err)
	}
	return n, more, nil
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
