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
	sqlInsertFile = `
INSERT INTO pending_uploads (workspace_id, filename, mimetype, size_bytes, sha256, content, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, now() + $7 * interval '1 microsecond')
RETURNING file_id, created_at, expires_at`

	sqlInsertChunk = `INSERT INTO pending_upload_chunks (file_id, seq, data) VALUES ($1, $2, $3)`
)

// Stage implements Storage.
func (p *Postgres) Stage(ctx context.Context, workspace uuid.UUID, files []NewFile) ([]File, error) {
	staged, _, err := p.StageOnce(ctx, workspace, "", files)
	return staged, err
}

// StageOnce implements Storage.
func (p *Postgres) StageOnce(ctx context.Context, workspace uuid.UUID, key string, files []NewFile) ([]File, bool, error) {
	if err := p.limits.validate(files); err != nil {
		return nil, false, err
	}
	if totalBytes(files) > smallUploadBytes {
		if err := p.largeUploads.Acquire(ctx, workspace, 1); err != nil {
			return nil, false, fmt.Errorf("pendinguploads: wait to write %d files: %w", len(files), err)
		}
		defer p.largeUploads.Release(workspace, 1)
	}
	if err := p.writing.Acquire(ctx, workspace, 1); err != nil {
		return nil, false, fmt.Errorf("pendinguploads: wait for a connection: %w", err)
	}
	defer p.writing.Release(workspace, 1)
	tx, replayed, err := p.begin(ctx, workspace, key, files)
	if err != nil || replayed != nil {
		return replayed, replayed != nil, err
	}
	defer tx.Rollback() // after a commit it does nothing
	reservation, err := p.reserve(ctx, tx, workspace, files)
	if err != nil {
		return nil, false, err
	}
	u := upload{workspace: workspace, key: key, files: files, reservation: reservation, insert: p.insertFile}
	staged, err := p.stageInTx(ctx, tx, u)
	if err == nil {
		err = commit(tx, workspace, files)
	}
	if err != nil {
		_ = tx.Rollback() // before the release: tx may hold the lock of the reservation
		p.release(ctx, reservation)
		return nil, false, err
	}
	return staged, false, nil
}

// begin begins the transaction of an upload. If an upload with this key was staged before, begin
// returns its files instead of a transaction. This precedes the check of the quota: a replay succeeds
// even if the quota would refuse the files now.
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
		err = confirmKey(ctx, tx, workspace, key)
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

// upload is what stageInTx makes visible.
type upload struct {
	workspace   uuid.UUID
	key         string // "": none
	files       []NewFile
	reservation uuid.NullUUID

	// insert inserts the row of the ith file, and its content if that belongs in the database.
	insert func(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, i int, f NewFile) (File, error)
}

// stageInTx writes everything that makes an upload visible, as part of tx.
func (p *Postgres) stageInTx(ctx context.Context, tx *sql.Tx, u upload) ([]File, error) {
	staged := make([]File, len(u.files))
	entries := make([]activity.Entry, len(u.files))
	for i, f := range u.files {
		file, err := u.insert(ctx, tx, u.workspace, i, f)
		if err != nil {
			return nil, fmt.Errorf("pendinguploads: stage %s for workspace %s: %w", f.Name, u.workspace, err)
		}
		staged[i], entries[i] = file, file.announcement()
	}
	if err := useReservation(ctx, tx, u.reservation); err != nil {
		return nil, err
	}
	if u.key != "" {
		if err := storeKey(ctx, tx, u.workspace, u.key, u.files, staged); err != nil {
			return nil, err
		}
	}
	// The inbox comes last: it takes a lock that every writer of the workspace waits for.
	if err := p.inbox.Append(ctx, tx, u.workspace, entries...); err != nil {
		return nil, fmt.Errorf("pendinguploads: announce %d files: %w", len(u.files), err)
	}
	return staged, nil
}

// insertFile inserts a file with its content, one chunk at a time.
func (p *Postgres) insertFile(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, _ int, f NewFile) (File, error) {
	buffer := p.buffers.Get().(*[]byte)
	defer p.buffers.Put(buffer)
	readChunk := func(left int64) ([]byte, error) {
		b := (*buffer)[:min(left, ChunkBytes)]
		if _, err := io.ReadFull(f.Content, b); err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil, fmt.Errorf("%w: content is shorter than its size of %d", ErrInvalidFile, f.Size)
		} else if err != nil {
			return nil, fmt.Errorf("read content: %w", err)
		}
		return b, nil
	}
	file := File{Workspace: workspace, Name: f.Name, MIMEType: f.MIMEType, Size: f.Size, SHA256: f.SHA256}
	first, err := readChunk(f.Size)
	if err != nil {
		return File{}, err
	}
	row := tx.QueryRowContext(ctx, sqlInsertFile, workspace, f.Name, f.MIMEType, f.Size, f.SHA256[:], first, p.limits.TTL.Microseconds())
	if err := row.Scan(&file.ID, &file.CreatedAt, &file.ExpiresAt); err != nil {
		return File{}, fmt.Errorf("insert: %w", err)
	}
	for seq := 1; int64(seq)*ChunkBytes < f.Size; seq++ {
		data, err := readChunk(f.Size - int64(seq)*ChunkBytes)
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
