package workspaces

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// The bounds of a page.
const (
	DefaultPage = 100
	MaxPage     = 500
)

// Listed is a workspace in a list, with what waits for it. On the base schema nothing can wait.
type Listed struct {
	Workspace
	Online          bool // a heartbeat within 2 minutes
	UnackedFiles    int64
	UnackedBytes    int64
	OldestUnackedAt *time.Time
}

// The page comes first, by its index, and only then what waits for each of its workspaces, by theirs. A workspace's
// quota bounds how many files that is.
const (
	sqlFirstPage = `
SELECT w.id, w.name, w.status, coalesce(w.delivery_mode, ''), coalesce(w.url, ''), coalesce(w.platform_inbound_secret, ''),
    w.last_heartbeat_at, w.created_at, coalesce(w.last_heartbeat_at > now() - interval '2 minutes', false),
    u.files, u.bytes, u.oldest
FROM (
    SELECT * FROM workspaces WHERE status <> 'removed'
    ORDER BY created_at DESC, id DESC LIMIT $1
) w
CROSS JOIN LATERAL (
    SELECT count(*) AS files, coalesce(sum(size_bytes), 0)::bigint AS bytes, min(created_at) AS oldest
    FROM pending_uploads WHERE workspace_id = w.id AND acked_at IS NULL AND expires_at > now()
) u
ORDER BY w.created_at DESC, w.id DESC`

	sqlNextPage = `
SELECT w.id, w.name, w.status, coalesce(w.delivery_mode, ''), coalesce(w.url, ''), coalesce(w.platform_inbound_secret, ''),
    w.last_heartbeat_at, w.created_at, coalesce(w.last_heartbeat_at > now() - interval '2 minutes', false),
    u.files, u.bytes, u.oldest
FROM (
    SELECT * FROM workspaces WHERE status <> 'removed' AND (created_at, id) < ($2, $3)
    ORDER BY created_at DESC, id DESC LIMIT $1
) w
CROSS JOIN LATERAL (
    SELECT count(*) AS files, coalesce(sum(size_bytes), 0)::bigint AS bytes, min(created_at) AS oldest
    FROM pending_uploads WHERE workspace_id = w.id AND acked_at IS NULL AND expires_at > now()
) u
ORDER BY w.created_at DESC, w.id DESC`

	sqlPageOnBase = `
SELECT id, name, status, coalesce(delivery_mode, ''), coalesce(url, ''), coalesce(platform_inbound_secret, ''),
    last_heartbeat_at, created_at, coalesce(last_heartbeat_at > now() - interval '2 minutes', false), 0, 0, NULL::timestamptz
FROM workspaces WHERE status <> 'removed' AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
ORDER BY created_at DESC, id DESC LIMIT $1`

	// A tombstone is found too, so that a page can follow a workspace that was removed since.
	sqlCreatedAt = `SELECT created_at FROM workspaces WHERE id = $1`
)

// List returns a page of the workspaces that are not removed, newest first, never nil, and whether there are more.
// Only those after the workspace after, if it is not the zero UUID; ErrNotFound if that never existed. limit 0 is
// DefaultPage; more than MaxPage is MaxPage.
func (s *Store) List(ctx context.Context, after uuid.UUID, limit int) (_ []Listed, more bool, err error) {
	if limit <= 0 {
		limit = DefaultPage
	}
	limit = min(limit, MaxPage)
	statement, args := sqlFirstPage, []any{limit + 1}
	if after != uuid.Nil {
		var createdAt time.Time
		if err := s.db.QueryRowContext(ctx, sqlCreatedAt, after).Scan(&createdAt); err != nil {
			return nil, false, fmt.Errorf("workspaces: list after %s: %w", after, notFound(err))
		}
		statement, args = sqlNextPage, append(args, createdAt, after)
	}
	if s.base {
		statement = sqlPageOnBase
		if after == uuid.Nil {
			args = append(args, nil, nil)
		}
	}
	rows, err := s.db.QueryContext(ctx, statement, args...)
	if err != nil {
		return nil, false, fmt.Errorf("workspaces: list: %w", err)
	}
	defer rows.Close()
	list, err := scanListed(rows)
	if err != nil {
		return nil, false, fmt.Errorf("workspaces: list: %w", err)
	}
	if len(list) > limit {
		return list[:limit], true, nil
	}
	return list, false, nil
}

func scanListed(rows *sql.Rows) ([]Listed, error) {
	list := []Listed{}
	for rows.Next() {
		var w Listed
		if err := rows.Scan(&w.ID, &w.Name, &w.Status, &w.Mode, &w.URL, &w.InboundSecret, &w.LastHeartbeatAt, &w.CreatedAt,
			&w.Online, &w.UnackedFiles, &w.UnackedBytes, &w.OldestUnackedAt); err != nil {
			return nil, err
		}
		list = append(list, w)
	}
	return list, rows.Err()
}
