package activity

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
	// sqlReadHeaders reads no bodies, except the small ones that describe an uploaded file.
	sqlReadHeaders = `
SELECT seq, id, activity_type, source_id, method, created_at,
    CASE WHEN activity_type = 'a2a_receive' AND method = 'chat_upload_receive' THEN request_body END
FROM activity_logs WHERE workspace_id = $1 AND seq > $2 ORDER BY seq LIMIT $3`

	// sqlLastSeq returns the number of the workspace's last row, pruned or not, and whether the row
	// after number $2 exists.
	sqlLastSeq = `
SELECT last_seq, EXISTS (SELECT FROM activity_logs WHERE workspace_id = $1 AND seq = $2 + 1)
FROM activity_counters WHERE workspace_id = $1`

	sqlNewestSeqs = `SELECT workspace_id, last_seq FROM activity_counters WHERE workspace_id = ANY($1)`
)

// A RowHeader is a row without its bodies.
type RowHeader struct {
	Seq       int64
	ID        uuid.UUID
	Type      string
	Source    uuid.NullUUID
	Method    string
	CreatedAt time.Time
	Upload    []byte // the request body of an upload's row, nil for all others
}

// ReadHeaders returns up to limit rows of the workspace with a seq greater than after, oldest first.
func (in *Inbox) ReadHeaders(ctx context.Context, workspace uuid.UUID, after int64, limit int) ([]RowHeader, error) {
	rows, err := in.db.QueryContext(ctx, sqlReadHeaders, workspace, after, limit)
	if err != nil {
		return nil, fmt.Errorf("activity: read row headers of workspace %s: %w", workspace, err)
	}
	defer rows.Close()
	var headers []RowHeader
	for rows.Next() {
		var h RowHeader
		var method sql.NullString
		if err := rows.Scan(&h.Seq, &h.ID, &h.Type, &h.Source, &method, &h.CreatedAt, &h.Upload); err != nil {
			return nil, fmt.Errorf("activity: scan row header of workspace %s: %w", workspace, err)
		}
		h.Method, h.CreatedAt = method.String, h.CreatedAt.UTC()
		headers = append(headers, h)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("activity: read row headers of workspace %s: %w", workspace, err)
	}
	return headers, nil
}

// Last returns the seq of the workspace's newest row, 0 if it never had one. It returns ErrCursorGone
// if a reader cannot continue after the row with the seq after without missing rows: the next row was
// pruned, or after is greater than the newest seq.
func (in *Inbox) Last(ctx context.Context, workspace uuid.UUID, after int64) (int64, error) {
	var last int64
	var nextExists bool
	err := in.db.QueryRowContext(ctx, sqlLastSeq, workspace, after).Scan(&last, &nextExists)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("activity: find the last row of workspace %s: %w", workspace, err)
	}
	// Numbers have no gaps: a rollback returns the numbers of its transaction.
	if after > last || after < last && !nextExists {
		return last, ErrCursorGone
	}
	return last, nil
}

// Newest returns the seq of the newest row of each workspace. Workspaces that never had a row are
// missing in the map.
func (in *Inbox) Newest(ctx context.Context, workspaces []uuid.UUID) (map[uuid.UUID]int64, error) {
	rows, err := in.db.QueryContext(ctx, sqlNewestSeqs, pq.Array(workspaces))
	if err != nil {
		return nil, fmt.Errorf("activity: find newest rows: %w", err)
	}
	defer rows.Close()
	newest := make(map[uuid.UUID]int64, len(workspaces))
	for rows.Next() {
		var id uuid.UUID
		var seq int64
		if err := rows.Scan(&id, &seq); err != nil {
			return nil, fmt.Errorf("activity: find newest rows: %w", err)
		}
		newest[id] = seq
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("activity: find newest rows: %w", err)
	}
	return newest, nil
}
