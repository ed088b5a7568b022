package activity

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Limits of a page. A page holds at most MaxLimit rows, and stops early, after at least
// one row, once its bodies exceed PageBytes: rows may be a MiB each, and what one poll
// costs in memory is not the sender's to choose. A reader who follows the cursor gets
// the rest with its next call.
const (
	DefaultLimit = 100
	MaxLimit     = 500
	PageBytes    = 2 << 20
)

// Source says where a row comes from.
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
	Reader bool          // the workspace itself reads: what is before After is read
}

const (
	rowColumns = `id, seq, workspace_id, activity_type, source_id, target_id, method, summary, ` +
		`request_body, response_body, duration_ms, status, error_detail, created_at`

	// sqlPage has two holes: the conditions, and the direction (twice). The inner query picks the
	// rows, the window adds up the bytes of those before each, without reading a body.
	sqlPage = `SELECT ` + rowColumns + ` FROM (
    SELECT *, sum(body_bytes) OVER (ORDER BY seq %[2]s) - body_bytes AS bytes_before FROM (
        SELECT * FROM activity_logs WHERE %[1]s ORDER BY seq %[2]s LIMIT $2
    ) picked
) page WHERE bytes_before <= $3 ORDER BY seq %[2]s`

	// sqlFollow is the page after a cursor, in one round trip: no row if the cursor is gone, and a
	// row without an id if there is nothing after it. Its holes: the cursor, and the page.
	sqlFollow = `SELECT cursor.seq, cursor.due, page.id, coalesce(page.seq, 0), page.workspace_id, coalesce(page.activity_type, ''), ` +
		`page.source_id, page.target_id, page.method, page.summary, page.request_body, page.response_body, page.duration_ms, ` +
		`page.status, page.error_detail, coalesce(page.created_at, 'epoch') FROM (
    %s
) cursor LEFT JOIN LATERAL (
%s
) page ON true ORDER BY page.seq`

	sqlCursor = `SELECT seq, false AS due FROM activity_logs WHERE id = $4 AND workspace_id = $1`

	// sqlCursorAndNote also tells whether it is time to note that the workspace has come so far.
	sqlCursorAndNote = `SELECT l.seq, coalesce(r.read_seq < l.seq AND r.noted_at < now() - interval '1 minute', true) AS due ` +
		`FROM activity_logs l LEFT JOIN activity_readers r USING (workspace_id) WHERE l.id = $4 AND l.workspace_id = $1`
)

// Read returns the rows of the workspace that q selects, never nil: oldest first if
// q.After or q.Oldest is set, newest first otherwise. ErrCursorGone if there is no row
// q.After in the workspace.
func (in *Inbox) Read(ctx context.Context, workspace uuid.UUID, q Query) ([]Row, error) {
	query, args := q.page(workspace, q.Reader && in.notes)
	rows, err := in.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("activity: read workspace %s: %w", workspace, err)
	}
	defer rows.Close()
	var cursor struct {
		found bool
		seq   int64
		due   bool
	}
	page := []Row{}
	for rows.Next() {
		var r Row
		var request, response *[]byte
		places := []any{
			&r.ID, &r.Seq, &r.WorkspaceID, &r.ActivityType, &r.SourceID, &r.TargetID, &r.Method,
			&r.Summary, &request, &response, &r.DurationMS, &r.Status, &r.ErrorDetail, &r.CreatedAt,
		}
		if q.After.Valid {
			places = append([]any{&cursor.seq, &cursor.due}, places...)
		}
		if err := rows.Scan(places...); err != nil {
			return nil, fmt.Errorf("activity: scan row of workspace %s: %w", workspace, err)
		}
		cursor.found = true
		if r.ID == uuid.Nil {
			continue // nothing after the cursor
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
	if q.After.Valid && !cursor.found {
		return nil, ErrCursorGone
	}
	if cursor.due {
		// Best effort: without it rows are kept for longer, and the next poll notes it.
		_ = in.noteRead(ctx, workspace, cursor.seq)
	}
	return page, nil
}

// page builds the statement for q. Only the presence of a condition depends on q; every
// value is a parameter.
func (q Query) page(workspace uuid.UUID, notes bool) (string, []any) {
	limit := q.Limit
	if limit <= 0 {
		limit = DefaultLimit
	}
	args := []any{workspace, min(limit, MaxLimit), PageBytes}
	conditions := []string{"workspace_id = $1"}
	if q.After.Valid {
		args = append(args, q.After.UUID)
		conditions = append(conditions, "seq > cursor.seq")
	}
	where := func(condition string, value any) {
		args = append(args, value)
		conditions = append(conditions, fmt.Sprintf(condition, len(args)))
	}
	switch q.Type {
	case "":
	case MethodChatUpload:
		where("activity_type = '"+TypeA2AReceive+"' AND method = $%d", q.Type)
	default:
		where("activity_type = $%d", q.Type)
	}
	switch q.Source {
	case FromCanvas:
		conditions = append(conditions, "source_id IS NULL")
	case FromAgent:
		conditions = append(conditions, "source_id IS NOT NULL")
	}
	if q.Peer.Valid {
		where("$%[1]d IN (source_id, target_id)", q.Peer.UUID)
	}
	if !q.Before.IsZero() {
		// In UTC: PostgreSQL refuses offsets of 16 hours and more, which RFC 3339 allows.
		where("created_at < $%d", q.Before.UTC())
	}
	if q.Within > 0 {
		where("created_at >= now() - $%d * interval '1 second'", q.Within.Seconds())
	}
	direction := "DESC"
	if q.After.Valid || q.Oldest {
		direction = "ASC"
	}
	page := fmt.Sprintf(sqlPage, strings.Join(conditions, " AND "), direction)
	switch {
	case !q.After.Valid:
		return page, args
	case notes:
		return fmt.Sprintf(sqlFollow, sqlCursorAndNote, page), args
	default:
		return fmt.Sprintf(sqlFollow, sqlCursor, page), args
	}
}
