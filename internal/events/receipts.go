package events

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
)

const (
	// sqlReadReceipts returns the receipts after a number and, as the last row, one unnumbered receipt if
	// there is any.
	sqlReadReceipts = `
(
    SELECT seq, kind, state, file_id, filename, size_bytes, at FROM receipts
    WHERE workspace_id = $1 AND seq > $2 ORDER BY seq LIMIT $3
)
UNION ALL
(
    SELECT seq, kind, state, file_id, filename, size_bytes, at FROM receipts
    WHERE workspace_id = $1 AND seq IS NULL LIMIT 1
)`

	// sqlAssignNumbers numbers receipts in the order in which they were inserted. It locks the receipts
	// before the counter, and counts the unnumbered ones only under those locks, because another
	// reader may number the same receipts concurrently. The counter's lock orders the commits.
	sqlAssignNumbers = `
WITH unnumbered AS MATERIALIZED (
    SELECT id FROM receipts WHERE workspace_id = $1 AND seq IS NULL ORDER BY id LIMIT $2 FOR UPDATE
), numbered AS (
    SELECT id, row_number() OVER (ORDER BY id) AS n, count(*) OVER () AS total FROM unnumbered
), counter AS (
    INSERT INTO receipt_counters AS c (workspace_id, last_seq) SELECT $1, count(*) FROM unnumbered HAVING count(*) > 0
    ON CONFLICT (workspace_id) DO UPDATE SET last_seq = c.last_seq + excluded.last_seq
    RETURNING last_seq
)
UPDATE receipts r SET seq = counter.last_seq - numbered.total + numbered.n FROM numbered, counter
WHERE r.workspace_id = $1 AND r.seq IS NULL AND r.id = numbered.id`

	// sqlLastReceipt returns the last number given, and whether the receipt after number $2 exists.
	sqlLastReceipt = `
SELECT last_seq, EXISTS (SELECT FROM receipts WHERE workspace_id = $1 AND seq = $2 + 1)
FROM receipt_counters WHERE workspace_id = $1`

	// sqlNewestReceipts returns of each workspace the last number given, and whether some receipts have none.
	sqlNewestReceipts = `
SELECT w.id, coalesce(c.last_seq, 0), EXISTS (SELECT FROM receipts r WHERE r.workspace_id = w.id AND r.seq IS NULL)
FROM unnest($1::uuid[]) w (id) LEFT JOIN receipt_counters c ON c.workspace_id = w.id`

	// sqlPrune deletes old receipts. It advances the counter for those without a number, so that a
	// reader that has not seen them gets ErrGone.
	sqlPrune = `
WITH old AS MATERIALIZED (
    SELECT ctid FROM receipts WHERE at < now() - $1 * interval '1 microsecond' ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM receipts WHERE ctid = ANY (ARRAY(SELECT ctid FROM old)) RETURNING workspace_id, seq
), counters AS (
    INSERT INTO receipt_counters AS c (workspace_id, last_seq)
    SELECT workspace_id, count(*) FROM gone WHERE seq IS NULL GROUP BY workspace_id ORDER BY workspace_id
    ON CONFLICT (workspace_id) DO UPDATE SET last_seq = c.last_seq + excluded.last_seq
)
SELECT count(*) FROM gone`
)

const (
	// assignBatchRows bounds one batch of numbering, and so how long other readers wait for its lock.
	assignBatchRows = 10_000

	// pruneBatchRows bounds one batch.
	pruneBatchRows = 2000
)

// readReceipts returns the receipts after a number, oldest first, and whether some are unnumbered.
func (l *Log) readReceipts(ctx context.Context, workspace uuid.UUID, after int64, limit int) (page []Event, unnumbered bool, err error) {
	rows, err := l.db.QueryContext(ctx, sqlReadReceipts, workspace, after, limit)
	if err != nil {
		return nil, false, fmt.Errorf("events: read workspace %s: %w", workspace, err)
	}
	defer rows.Close()
	for rows.Next() {
		var e Event
		var seq sql.NullInt64
		if err := rows.Scan(&seq, &e.Kind, &e.State, &e.FileID, &e.Name, &e.Size, &e.At); err != nil {
			return nil, false, fmt.Errorf("events: scan for workspace %s: %w", workspace, err)
		}
		if !seq.Valid {
			unnumbered = true
			continue
		}
		e.Receipt, e.At = seq.Int64, e.At.UTC()
		page = append(page, e)
	}
	if err := rows.Err(); err != nil {
		return nil, false, fmt.Errorf("events: read workspace %s: %w", workspace, err)
	}
	return page, unnumbered, nil
}

// assignNumbers numbers one batch of receipts.
func (l *Log) assignNumbers(ctx context.Context, workspace uuid.UUID) error {
	if _, err := l.db.ExecContext(ctx, sqlAssignNumbers, workspace, assignBatchRows); err != nil {
		return fmt.Errorf("events: number for workspace %s: %w", workspace, err)
	}
	return nil
}

// lastReceipt numbers all receipts and returns the last number. It returns ErrGone if a reader cannot
// continue after the number after without missing receipts.
func (l *Log) lastReceipt(ctx context.Context, workspace uuid.UUID, after int64) (int64, error) {
	for {
		_, unnumbered, err := l.readReceipts(ctx, workspace, after, 1)
		if err != nil {
			return 0, err
		}
		if !unnumbered {
			break
		}
		if err := l.assignNumbers(ctx, workspace); err != nil {
			return 0, err
		}
	}
	var last int64
	var nextExists bool
	err := l.db.QueryRowContext(ctx, sqlLastReceipt, workspace, after).Scan(&last, &nextExists)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("events: find the last receipt of workspace %s: %w", workspace, err)
	}
	// Numbers have no gaps, except for pruned receipts.
	if after > last || after < last && !nextExists {
		return last, ErrGone
	}
	return last, nil
}

// NewestReceipts returns the number of the newest receipt of each workspace, and of which workspaces receipts
// have no number yet.
func (l *Log) NewestReceipts(ctx context.Context, workspaces []uuid.UUID) (newest map[uuid.UUID]int64, unnumbered map[uuid.UUID]bool, err error) {
	rows, err := l.db.QueryContext(ctx, sqlNewestReceipts, pq.Array(workspaces))
	if err != nil {
		return nil, nil, fmt.Errorf("events: find newest receipts: %w", err)
	}
	defer rows.Close()
	newest, unnumbered = make(map[uuid.UUID]int64, len(workspaces)), map[uuid.UUID]bool{}
	for rows.Next() {
		var id uuid.UUID
		var last int64
		var some bool
		if err := rows.Scan(&id, &last, &some); err != nil {
			return nil, nil, fmt.Errorf("events: find newest receipts: %w", err)
		}
		if newest[id] = last; some {
			unnumbered[id] = true
		}
	}
	if err := rows.Err(); err != nil {
		return nil, nil, fmt.Errorf("events: find newest receipts: %w", err)
	}
	return newest, unnumbered, nil
}

// Prune deletes one batch of receipts that are older than retention, and reports whether there
// may be more.
func (l *Log) Prune(ctx context.Context, retention time.Duration) (more bool, err error) {
	var n int
	if err := l.db.QueryRowContext(ctx, sqlPrune, retention.Microseconds(), pruneBatchRows).Scan(&n); err != nil {
		return false, fmt.Errorf("events: prune: %w", err)
	}
	return n == pruneBatchRows, nil
}
