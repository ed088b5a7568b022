package activity

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Limits of a page. A page holds at most MaxLimit rows. It ends early, after at least one row, once
// its bodies exceed PageBytes: a row may have a MiB, and the memory that one poll takes must not
// depend on the sender. A reader that follows the cursor gets the rest with its next call.
const (
	DefaultLimit = 100
	MaxLimit     = 500
	PageBytes    = 2 << 20
)

const (
	// maxNoting is how many connections may record read positions at once.
	maxNoting = 4

	// noteTimeout bounds recording one.
	noteTimeout = 500 * time.Millisecond
)

// Source selects rows by their sender.
type Source int

// The sources a Query can select.
const (
	AnySource  Source = iota
	FromCanvas        // source_id is null
	FromAgent         // source_id is set
)

// A Query selects rows of one workspace. The zero value is the newest DefaultLimit rows.
type Query struct {
	Type   string        // activity type, or MethodChatUpload for the upload rows
	Source Source        //
	Peer   uuid.NullUUID // source or target of the row
	Before time.Time     // only rows strictly older
	Within time.Duration // only rows at most this old, by the database's clock
	After  uuid.NullUUID // only rows after this one, oldest first
	Oldest bool          // oldest first, without After
	Limit  int           // 0 is DefaultLimit; more than MaxLimit is MaxLimit
	Reader bool          // the workspace itself reads, so After is its read position
}

const (
	// sqlCursor also tells the last number that the workspace has given, by which most polls are over:
	// there is nothing new. Last, whether it is time to note that the workspace has come so far.
	sqlCursor = `SELECT l.seq, c.last_seq, %s FROM activity_logs l LEFT JOIN activity_counters c USING (workspace_id) ` +
		`%sWHERE l.id = $1 AND l.workspace_id = $2`

	sqlDue       = `coalesce(r.read_seq < l.seq AND r.noted_at < now() - interval '1 minute', true)`
	sqlDueReader = `LEFT JOIN activity_readers r USING (workspace_id) `

	// sqlPage is a format of the rows (%[1]s) and the direction (%[2]s). The window function sums the
	// bytes of the rows before each without reading a body.
	sqlPage = `
SELECT id, seq, workspace_id, activity_type, source_id, target_id, method, summary, request_body, response_body,
    duration_ms, status, error_detail, created_at
FROM (
    SELECT *, sum(body_bytes) OVER (ORDER BY seq %[2]s) - body_bytes AS bytes_before FROM (
        %[1]s
    ) picked
) page WHERE bytes_before <= $3 ORDER BY seq %[2]s`

	// sqlPick is a format of the conditions (%[1]s) and the direction (%[2]s). Each filter has an index
	// that gives its rows in the order of seq, so that no more rows are read than the page has.
	sqlPick = `SELECT * FROM activity_logs WHERE %[1]s ORDER BY seq %[2]s LIMIT $2`

	// sqlPickPeer is that for the two columns of a peer: the conditions of the one (%[1]s) and of the other
	// (%[3]s). OR would have no such index.
	sqlPickPeer = `SELECT * FROM (
            (SELECT * FROM activity_logs WHERE %[1]s ORDER BY seq %[2]s LIMIT $2)
            UNION ALL
            (SELECT * FROM activity_logs WHERE %[3]s ORDER BY seq %[2]s LIMIT $2)
        ) either ORDER BY seq %[2]s LIMIT $2`

	// Time bounds are bounds of seq, because created_at never runs against it: the first row that is not
	// older, and the last that is too old, are found by the index on the time.
	sqlBefore = `created_at < $%[1]d AND seq < coalesce((SELECT seq FROM activity_logs ` +
		`WHERE workspace_id = $1 AND created_at >= $%[1]d ORDER BY created_at LIMIT 1), 9223372036854775807)`
	sqlWithin = `created_at >= now() - $%[1]d * interval '1 second' AND seq > coalesce((SELECT seq FROM activity_logs ` +
		`WHERE workspace_id = $1 AND created_at < now() - $%[1]d * interval '1 second' ORDER BY created_at DESC LIMIT 1), 0)`
)

// Read returns the rows of the workspace that q selects, never nil: oldest first if
// q.After or q.Oldest is set, newest first otherwise. ErrCursorGone if there is no row
// q.After in the workspace.
func (in *Inbox) Read(ctx context.Context, workspace uuid.UUID, q Query) ([]Row, error) {
	var after sql.NullInt64
	if q.After.Valid {
		last, err := in.findCursor(ctx, workspace, q, &after)
		if err != nil {
			return nil, err
		}
		if last.Valid && last.Int64 == after.Int64 {
			return []Row{}, nil
		}
	}
	query, args := q.page(workspace, after)
	rows, err := in.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("activity: read workspace %s: %w", workspace, err)
	}
	defer rows.Close()
	page := []Row{}
	for rows.Next() {
		var r Row
		var request, response *[]byte
		if err := rows.Scan(&r.ID, &r.Seq, &r.WorkspaceID, &r.ActivityType, &r.SourceID, &r.TargetID, &r.Method,
			&r.Summary, &request, &response, &r.DurationMS, &r.Status, &r.ErrorDetail, &r.CreatedAt); err != nil {
			return nil, fmt.Errorf("activity: scan row of workspace %s: %w", workspace, err)
		}
		r.CreatedAt = r.CreatedAt.UTC()
		if request != nil {
			r.RequestBody = *request
		}
		if response != nil {
			r.ResponseBody = *response
		}
		page = append(page, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("activity: read workspace %s: %w", workspace, err)
	}
	return page, nil
}

// findCursor sets after to the number of the row q.After, and returns the number of the workspace's
// last row. ErrCursorGone if there is no row q.After.
func (in *Inbox) findCursor(ctx context.Context, workspace uuid.UUID, q Query, after *sql.NullInt64) (last sql.NullInt64, err error) {
	due := false
	err = in.db.QueryRowContext(ctx, q.cursor(in.notes), q.After.UUID, workspace).Scan(after, &last, &due)
	if errors.Is(err, sql.ErrNoRows) {
		return last, ErrCursorGone
	}
	if err != nil {
		return last, fmt.Errorf("activity: find cursor of workspace %s: %w", workspace, err)
	}
	if due {
		in.tryNoteRead(ctx, workspace, after.Int64)
	}
	return last, nil
}

// tryNoteRead is noteRead, best effort: without it rows are kept for longer, and the next poll records it. It does not
// wait for the lock of another transaction, because the poll waits for it.
func (in *Inbox) tryNoteRead(ctx context.Context, workspace uuid.UUID, seq int64) {
	if in.noting.Take(workspace, 1) != nil {
		return
	}
	defer in.noting.Release(workspace, 1)
	ctx, cancel := context.WithTimeout(ctx, noteTimeout)
	defer cancel()
	_ = in.noteRead(ctx, workspace, seq)
}

// cursor is the statement that finds the cursor of q.
func (q Query) cursor(notes bool) string {
	if q.Reader && notes {
		return fmt.Sprintf(sqlCursor, sqlDue, sqlDueReader)
	}
	return fmt.Sprintf(sqlCursor, "false", "")
}

// page returns the statement for q and its arguments. Which conditions it has depends on q; every
// value of q is a parameter.
func (q Query) page(workspace uuid.UUID, after sql.NullInt64) (string, []any) {
	limit := q.Limit
	if limit <= 0 {
		limit = DefaultLimit
	}
	args := []any{workspace, min(limit, MaxLimit), PageBytes}
	conditions := []string{"workspace_id = $1"}
	where := func(condition string, value any) {
		args = append(args, value)
		conditions = append(conditions, fmt.Sprintf(condition, len(args)))
	}
	switch q.Type {
	case "":
	case MethodChatUpload: // a literal, because its index has these rows only; likewise below
		conditions = append(conditions, "activity_type = '"+TypeA2AReceive+"' AND method = '"+MethodChatUpload+"'")
	case TypeA2AReceive:
		conditions = append(conditions, "activity_type = '"+TypeA2AReceive+"'")
	default:
		where("activity_type = $%d AND activity_type <> '"+TypeA2AReceive+"'", q.Type)
	}
	switch q.Source {
	case FromCanvas:
		conditions = append(conditions, "source_id IS NULL")
	case FromAgent:
		conditions = append(conditions, "source_id IS NOT NULL")
	}
	if !q.Before.IsZero() {
		// In UTC: PostgreSQL refuses offsets of 16 hours and more, which RFC 3339 allows.
		where(sqlBefore, q.Before.UTC())
	}
	if q.Within > 0 {
		where(sqlWithin, q.Within.Seconds())
	}
	direction := "DESC"
	if after.Valid {
		where("seq > $%d", after.Int64)
	}
	if after.Valid || q.Oldest {
		direction = "ASC"
	}
	all := strings.Join(conditions, " AND ")
	pick := fmt.Sprintf(sqlPick, all, direction)
	if q.Peer.Valid {
		args = append(args, q.Peer.UUID)
		source, target := fmt.Sprintf(" AND source_id = $%d", len(args)), fmt.Sprintf(" AND target_id = $%[1]d AND source_id IS DISTINCT FROM $%[1]d", len(args))
		if q.Peer.UUID != workspace { // the index of targets has these rows only
			target += " AND target_id <> workspace_id"
		}
		pick = fmt.Sprintf(sqlPickPeer, all+source, direction, all+target)
	}
	return fmt.Sprintf(sqlPage, pick, direction), args
}
