package activity

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/google/uuid"
	"github.com/lib/pq"

	"github.com/molecule-ai/platform/internal/fairshare"
)

// sqlAppend takes as many numbers as there are rows from the workspace's counter and inserts the rows
// with them. It is one round trip, because the counter's lock is held meanwhile.
const sqlAppend = `
WITH counter AS (
    INSERT INTO activity_counters AS c (workspace_id, last_seq) VALUES ($1, $2)
    ON CONFLICT (workspace_id) DO UPDATE SET last_seq = c.last_seq + excluded.last_seq
    RETURNING last_seq
)
INSERT INTO activity_logs (workspace_id, seq, activity_type, source_id, target_id, method, summary,
    request_body, response_body, body_bytes, duration_ms, status, error_detail)
SELECT $1, counter.last_seq - $2 + r.n, r.activity_type, r.source_id, r.target_id, r.method, r.summary,
    r.request_body, r.response_body, r.body_bytes, r.duration_ms, r.status, r.error_detail
FROM counter, unnest($3::text[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::json[], $9::json[],
    $10::integer[], $11::bigint[], $12::text[], $13::text[])
    WITH ORDINALITY AS r (activity_type, source_id, target_id, method, summary, request_body, response_body,
    body_bytes, duration_ms, status, error_detail, n)`

// Inbox reads and writes the activity log. It is safe for concurrent use.
type Inbox struct {
	db     *sql.DB
	notes  bool // the schema has activity_readers, so it is not base
	noting *fairshare.Budget
}

// New returns the inbox in db. It notes how far workspaces have read, which Prune goes by.
func New(db *sql.DB) *Inbox { return &Inbox{db: db, notes: true, noting: fairshare.New(maxNoting)} }

// WithoutReaders makes the inbox note nothing, and returns it. It is for the schema before staging, which
// has no table for notes, and on which nothing is pruned.
func (in *Inbox) WithoutReaders() *Inbox {
	in.notes = false
	return in
}

// Append writes the entries as rows of the workspace, in their order, as part of tx.
//
// It locks the workspace's counter until tx ends. Call it last, with nothing but the commit after it:
// other writers of the workspace wait for the lock, and commit order is cursor order only then.
func (in *Inbox) Append(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, entries ...Entry) error {
	if len(entries) == 0 {
		return nil
	}
	n := len(entries)
	var (
		types               = make([]string, n)
		sources, targets    = make([]uuid.NullUUID, n), make([]uuid.NullUUID, n)
		methods, summaries  = make([]*string, n), make([]*string, n)
		requests, responses = make([]*string, n), make([]*string, n)
		sizes               = make([]int64, n)
		durations           = make([]*int64, n)
		statuses, errs      = make([]*string, n), make([]*string, n)
	)
	for i, e := range entries {
		types[i], sources[i], targets[i] = e.Type, e.SourceID, e.TargetID
		methods[i], summaries[i] = text(e.Method), text(e.Summary)
		requests[i], responses[i] = body(e.RequestBody), body(e.ResponseBody)
		sizes[i] = int64(len(e.RequestBody) + len(e.ResponseBody))
		if e.Duration != nil {
			ms := e.Duration.Milliseconds()
			durations[i] = &ms
		}
		statuses[i], errs[i] = text(e.Status), text(e.ErrorDetail)
	}
	_, err := tx.ExecContext(ctx, sqlAppend, workspace, n, pq.Array(types), pq.Array(sources), pq.Array(targets),
		pq.Array(methods), pq.Array(summaries), pq.Array(requests), pq.Array(responses), pq.Array(sizes),
		pq.Array(durations), pq.Array(statuses), pq.Array(errs))
	if err != nil {
		return fmt.Errorf("activity: append %d rows for workspace %s: %w", n, workspace, err)
	}
	return nil
}

// Record appends one entry in a transaction of its own. The row is durable when it returns nil.
func (in *Inbox) Record(ctx context.Context, workspace uuid.UUID, e Entry) error {
	return in.transact(ctx, workspace, func(tx *sql.Tx) error { return in.Append(ctx, tx, workspace, e) })
}
