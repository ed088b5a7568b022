package pendinguploads

import (
	"context"
	"database/sql"
	"fmt"
	"io"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
)

const (
	sqlInsertFile = `INSERT INTO pending_uploads (workspace_id, filename, mimetype, size_bytes, sha256, content, expires_at) ` +
		`VALUES ($1, $2, $3, $4, $5, $6, now() + $7 * interval '1 microsecond') RETURNING file_id, created_at, expires_at`

	sqlInsertChunk = `INSERT INTO pending_upload_chunks (file_id, seq, data) VALUES ($1, $2, $3)`
)

// Stage implements Storage.
func (p *Postgres) Stage(ctx context.Context, workspace uuid.UUID, files []NewFile) ([]File, error) {
	staged, _, err := p.StageOnce(ctx, workspace, "", files)
	return staged, err
}

// StageOnce implements Storage.
func (p *Postgres) StageOnce(ctx context.Context, workspace uuid.UUID, key string, files []NewFile) ([]File, bool, error) {
	if err := p.limits.check(files); err != nil {
		return nil, false, err
	}
	if total(files) > atOnceBytes {
		if err := p.large.Acquire(ctx, workspace, 1); err != nil {
			return nil, false, fmt.Errorf("pendinguploads: wait to write %d files: %w", len(files), err)
		}
		defer p.large.Release(workspace, 1)
	}
	if err := p.writing.Acquire(ctx, workspace, 1); err != nil {
		return nil, false, fmt.Errorf("pendinguploads: wait for a connection: %w", err)
	}
	defer p.writing.Release(workspace, 1)
	tx, replayed, err := p.begin(ctx, workspace, key, files)
	if err != nil || replayed != nil {
		return replayed, replayed != nil, err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit it does nothing
	room, err := p.reserve(ctx, tx, workspace, files)
	if err != nil {
		return nil, false, err
	}
	staged, err := p.stage(ctx, tx, upload{workspace: workspace, key: key, files: files, room: room, write: p.insert})
	if err == nil {
		err = commit(tx, workspace, files)
	}
	if err != nil {
		_ = tx.Rollback() // first: tx may hold the lock of the reservation
		p.release(ctx, room)
		return nil, false, err
	}
	return staged, false, nil
}

// begin begins the transaction of an upload. If the upload was staged before, by its key, there is
// none, but the first answer: it counts also when there would be no room for the files any more.
func (p *Postgres) begin(ctx context.Context, workspace uuid.UUID, key string, files []NewFile) (*sql.Tx, []File, error) {
	tx, err := p.staging.BeginTx(ctx, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("pendinguploads: begin: %w", err)
	}
	if key == "" {
		return tx, nil, nil
	}
	staged, err := p.replay(ctx, tx, workspace, key, files)
	if err == nil && staged != nil {
		err = confirm(ctx, tx, workspace, key)
	}
	if err != nil {
		_ = tx.Rollback()
		return nil, nil, err
	}
	if staged != nil {
		return nil, staged, nil
	}
	return tx, nil, nil
}

func commit(tx *sql.Tx, workspace uuid.UUID, files []NewFile) error {
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("pendinguploads: commit %d files for workspace %s: %w", len(files), workspace, err)
	}
	return nil
}

// An upload is what stage stages.
type upload struct {
	workspace uuid.UUID
	key       string // "": none
	files     []NewFile
	room      uuid.NullUUID

	// write makes the row of the ith file, with its bytes if they are not elsewhere.
	write func(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, i int, f NewFile) (File, error)
}

// stage writes all that makes an upload visible, as part of tx.
func (p *Postgres) stage(ctx context.Context, tx *sql.Tx, u upload) ([]File, error) {
	staged := make([]File, len(u.files))
	entries := make([]activity.Entry, len(u.files))
	for i, f := range u.files {
		file, err := u.write(ctx, tx, u.workspace, i, f)
		if err != nil {
			return nil, fmt.Errorf("pendinguploads: stage %s for workspace %s: %w", f.Name, u.workspace, err)
		}
		staged[i], entries[i] = file, file.announcement()
	}
	if err := useReservation(ctx, tx, u.room); err != nil {
		return nil, err
	}
	if u.key != "" {
		if err := remember(ctx, tx, u.workspace, u.key, u.files, staged); err != nil {
			return nil, err
		}
	}
	// The inbox last: it takes a lock that every writer of the workspace waits for.
	if err := p.inbox.Append(ctx, tx, u.workspace, entries...); err != nil {
		return nil, fmt.Errorf("pendinguploads: announce %d files: %w", len(u.files), err)
	}
	return staged, nil
}

// total is how long files are together.
func total(files []NewFile) (bytes int64) {
	for _, f := range files {
		bytes += f.Size
	}
	return bytes
}

// insert writes one file, a piece at a time.
func (p *Postgres) insert(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, _ int, f NewFile) (File, error) {
	buffer := p.chunks.Get().(*[]byte)
	defer p.chunks.Put(buffer)
	piece := func(left int64) ([]byte, error) {
		b := (*buffer)[:min(left, ChunkBytes)]
		if _, err := io.ReadFull(f.Content, b); err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil, fmt.Errorf("%w: content is shorter than its size of %d", ErrInvalidFile, f.Size)
		} else if err != nil {
			return nil, fmt.Errorf("read content: %w", err)
		}
		return b, nil
	}
	file := File{Workspace: workspace, Name: f.Name, MIMEType: f.MIMEType, Size: f.Size, SHA256: f.SHA256}
	first, err := piece(f.Size)
	if err != nil {
		return File{}, err
	}
	row := tx.QueryRowContext(ctx, sqlInsertFile, workspace, f.Name, f.MIMEType, f.Size, f.SHA256[:], first, p.limits.TTL.Microseconds())
	if err := row.Scan(&file.ID, &file.CreatedAt, &file.ExpiresAt); err != nil {
		return File{}, fmt.Errorf("insert: %w", err)
	}
	for seq := 1; int64(seq)*ChunkBytes < f.Size; seq++ {
		data, err := piece(f.Size - int64(seq)*ChunkBytes)
		if err != nil {
			return File{}, err
		}
		if _, err := tx.ExecContext(ctx, sqlInsertChunk, file.ID, seq, data); err != nil {
			return File{}, fmt.Errorf("insert chunk %d: %w", seq, err)
		}
	}
	switch n, err := io.ReadFull(f.Content, (*buffer)[:1]); {
	case n != 0:
		return File{}, fmt.Errorf("%w: content is longer than its size of %d", ErrInvalidFile, f.Size)
	case err != io.EOF:
		return File{}, fmt.Errorf("read content: %w", err)
	}
	return file, nil
}
