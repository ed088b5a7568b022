package pendinguploads

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// Each statement selects the columns in the order of File.columns. Those that read contain the same
// condition: a file that was acknowledged in time stays readable until it is swept.
const (
	sqlGet = `
SELECT file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at
FROM pending_uploads
WHERE file_id = $1 AND workspace_id = $2
  AND (acked_at IS NOT NULL OR expires_at > now())`

	sqlMarkFetched = `
UPDATE pending_uploads SET fetched_at = now()
WHERE file_id = $1 AND workspace_id = $2
  AND fetched_at IS NULL
  AND (acked_at IS NOT NULL OR expires_at > now())`

	sqlAck = `
UPDATE pending_uploads SET acked_at = now()
WHERE file_id = $1 AND workspace_id = $2
  AND acked_at IS NULL AND expires_at > now()
RETURNING file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at`

	// The three lists are separate statements because each filter needs its own partial index.
	sqlListUnacked = `
SELECT file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at
FROM pending_uploads
WHERE workspace_id = $1
  AND (acked_at IS NOT NULL OR expires_at > now())
  AND acked_at IS NULL
  AND (created_at, file_id) > ($3, $4)
ORDER BY created_at, file_id
LIMIT $2`

	sqlListAcked = `
SELECT file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at
FROM pending_uploads
WHERE workspace_id = $1
  AND (acked_at IS NOT NULL OR expires_at > now())
  AND acked_at IS NOT NULL
  AND (created_at, file_id) > ($3, $4)
ORDER BY created_at, file_id
LIMIT $2`

	// Each half reads its own index, so a page reads at most twice its files.
	sqlListAll = `
(
    SELECT file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at
    FROM pending_uploads
    WHERE workspace_id = $1
      AND (acked_at IS NOT NULL OR expires_at > now())
      AND acked_at IS NULL
      AND (created_at, file_id) > ($3, $4)
    ORDER BY created_at, file_id
    LIMIT $2
) UNION ALL (
    SELECT file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at
    FROM pending_uploads
    WHERE workspace_id = $1
      AND (acked_at IS NOT NULL OR expires_at > now())
      AND acked_at IS NOT NULL
      AND (created_at, file_id) > ($3, $4)
    ORDER BY created_at, file_id
    LIMIT $2
)
ORDER BY created_at, file_id
LIMIT $2`
)

var listStatements = map[Filter]string{OnlyUnacked: sqlListUnacked, OnlyAcked: sqlListAcked, All: sqlListAll}

// Get implements Storage.
func (p *Postgres) Get(ctx context.Context, workspace, id uuid.UUID) (File, error) {
	f := File{Workspace: workspace}
	if err := p.db.QueryRowContext(ctx, sqlGet, id, workspace).Scan(f.columns()...); err != nil {
		return File{}, fmt.Errorf("pendinguploads: get %s: %w", id, notFound(err))
	}
	return f, nil
}

// MarkFetched implements Storage.
func (p *Postgres) MarkFetched(ctx context.Context, workspace, id uuid.UUID) (bool, error) {
	result, err := p.db.ExecContext(ctx, sqlMarkFetched, id, workspace)
	if err != nil {
		return false, fmt.Errorf("pendinguploads: mark %s fetched: %w", id, err)
	}
	n, _ := result.RowsAffected() // lib/pq never fails here
	return n == 1, nil
}

// Ack implements Storage. Of several calls at the same time the first is the one whose UPDATE found the
// file unacknowledged. Comparing times would not do: two may be equal.
func (p *Postgres) Ack(ctx context.Context, workspace, id uuid.UUID) (File, bool, error) {
	f := File{Workspace: workspace}
	err := p.db.QueryRowContext(ctx, sqlAck, id, workspace).Scan(f.columns()...)
	if errors.Is(err, sql.ErrNoRows) {
		f, err = p.Get(ctx, workspace, id)
		return f, false, err
	}
	if err != nil {
		return File{}, false, fmt.Errorf("pendinguploads: ack %s: %w", id, err)
	}
	return f, true, nil
}

// List implements Storage.
func (p *Postgres) List(ctx context.Context, workspace uuid.UUID, q ListQuery) ([]File, error) {
	limit := q.Limit
	if limit <= 0 {
		limit = DefaultListLimit
	}
	args := []any{workspace, min(limit, MaxListLimit), "-infinity", uuid.Nil}
	if q.After.Valid {
		after, err := p.Get(ctx, workspace, q.After.UUID)
		if err != nil {
			return nil, fmt.Errorf("pendinguploads: list after: %w", err)
		}
		args[2], args[3] = after.CreatedAt, after.ID
	}
	rows, err := p.db.QueryContext(ctx, listStatements[q.Filter], args...)
	if err != nil {
		return nil, fmt.Errorf("pendinguploads: list workspace %s: %w", workspace, err)
	}
	defer rows.Close()
	files := []File{}
	for rows.Next() {
		f := File{Workspace: workspace}
		if err := rows.Scan(f.columns()...); err != nil {
			return nil, fmt.Errorf("pendinguploads: list workspace %s: %w", workspace, err)
		}
		files = append(files, f)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("pendinguploads: list workspace %s: %w", workspace, err)
	}
	return files, nil
}

// columns returns the destinations for the columns of a file.
func (f *File) columns() []any {
	return []any{&f.ID, &f.Name, &f.MIMEType, &f.Size, (*digest)(&f.SHA256), &f.CreatedAt, &f.FetchedAt, &f.AckedAt, &f.ExpiresAt}
}

// digest scans a SHA-256 of exactly 32 bytes, which a constraint of the table guarantees.
type digest [32]byte

// Scan implements sql.Scanner.
func (d *digest) Scan(src any) error {
	b, ok := src.([]byte)
	if !ok || len(b) != len(d) {
		return fmt.Errorf("not a SHA-256: %T", src)
	}
	copy(d[:], b)
	return nil
}

// notFound replaces sql.ErrNoRows by ErrNotFound.
func notFound(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}
