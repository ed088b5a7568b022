//go:build linux

package main

import (
	"context"
	"database/sql"
	"fmt"
)

// tableChecks check what no client can see. Each query returns a row for each violation.
var tableChecks = []struct {
	verdict verdict
	what    string
	query   string
}{
	{lost, "file without all its bytes", `SELECT f.file_id FROM pending_uploads f LEFT JOIN LATERAL (
		SELECT count(*) AS n, max(seq) AS last, sum(octet_length(data)) AS bytes FROM pending_upload_chunks c WHERE c.file_id = f.file_id
	) c ON true WHERE size_bytes <> octet_length(content) + coalesce(c.bytes, 0) OR c.n <> coalesce(c.last, 0)
	OR c.n <> greatest(ceil(size_bytes / 1048576.0) - 1, 0)`},
	{corrupt, "file whose bytes have the wrong SHA-256", `SELECT f.file_id FROM pending_uploads f WHERE sha256 <> sha256(content ||
		coalesce((SELECT string_agg(data, ''::bytea ORDER BY seq) FROM pending_upload_chunks c WHERE c.file_id = f.file_id), ''::bytea))`},
	{unexpected, "bytes without a file", `SELECT file_id FROM pending_upload_chunks c
		WHERE NOT EXISTS (SELECT FROM pending_uploads f WHERE f.file_id = c.file_id)`},
	{lost, "file without exactly one inbox row", `SELECT f.file_id FROM pending_uploads f WHERE (SELECT count(*) FROM activity_logs a
		WHERE a.workspace_id = f.workspace_id AND a.method = 'chat_upload_receive' AND a.request_body->>'file_id' = f.file_id::text) <> 1`},
	{unexpected, "inbox whose counter differs from the number of its rows", `SELECT c.workspace_id FROM activity_counters c
		JOIN (SELECT workspace_id, count(*) AS n, max(seq) AS last FROM activity_logs GROUP BY 1) a USING (workspace_id)
		WHERE c.last_seq <> a.n OR c.last_seq <> a.last`},
	{unexpected, "idempotency key with files that were never announced", `SELECT k.workspace_id || ' ' || (f->>'ID') FROM upload_keys k, json_array_elements(k.files) f
		EXCEPT SELECT workspace_id || ' ' || (request_body->>'file_id') FROM activity_logs WHERE method = 'chat_upload_receive'`},
	{unexpected, "acknowledgement with two receipts", `SELECT file_id FROM receipts WHERE kind = 'acked' GROUP BY 1 HAVING count(*) > 1`},
	{unexpected, "session left idle in a transaction", `SELECT pid FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'`},
}

const sqlRows = `SELECT id FROM activity_logs WHERE workspace_id = $1 ORDER BY seq`

// checkTables checks the database after all platforms have stopped. Every workspace's poller must have seen exactly the
// rows of its inbox.
func checkTables(ctx context.Context, db *sql.DB, h *history, all []*workspace) error {
	for _, c := range tableChecks {
		ids, err := column(ctx, db, c.query)
		if err != nil {
			return fmt.Errorf("check for %q: %w", c.what, err)
		}
		for _, id := range ids {
			h.problem(c.verdict, "%s: %s", c.what, id)
		}
	}
	for _, w := range all {
		stored, err := column(ctx, db, sqlRows, w.id)
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, r := range w.rows {
			seen[r.id] = true
		}
		for i, id := range stored {
			if !seen[id] {
				h.problem(lost, "row %s, %d of %d of workspace %d, was skipped by its cursor", id, i+1, len(stored), w.index)
			}
			delete(seen, id)
		}
		for id := range seen {
			h.problem(lost, "row %s, which workspace %d saw, is missing", id, w.index)
		}
	}
	return nil
}

// column returns the first column of a query's result.
func column(ctx context.Context, db *sql.DB, query string, args ...any) ([]string, error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var values []string
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, rows.Err()
}
