package pendinguploads

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
)

const (
	// What is not where the options say: $1 is the store for new files, 0 the database.
	misplaced = readable + ` AND CASE WHEN object_key IS NULL THEN $1 <> 0 AND size_bytes > $2 ` +
		`ELSE $1 IS DISTINCT FROM (SELECT store_id FROM upload_objects o WHERE o.object_key = pending_uploads.object_key) END`

	sqlCountMisplaced = `SELECT count(*), coalesce(sum(size_bytes), 0) FROM pending_uploads WHERE ` + misplaced

	sqlMisplaced = `SELECT workspace_id, ` + fileColumns + ` FROM pending_uploads WHERE ` + misplaced + ` AND file_id > $3 ORDER BY file_id LIMIT $4`

	// moveGrace is how long the object that a file was in stays: somebody may be on the way to it with
	// a link, and a standby that is promoted may not know yet that the file has moved.
	moveGrace = `interval '1 hour'`

	// From wherever the bytes were to an object. Whoever swept, or moved, the file meanwhile has won.
	sqlMoveOut = `WITH moved AS (` +
		`UPDATE pending_uploads SET content = '', object_key = $2 WHERE file_id = $1 AND object_key IS NOT DISTINCT FROM $3 RETURNING file_id` +
		`), claimed AS (` +
		`UPDATE upload_objects SET file_id = moved.file_id, garbage_at = NULL FROM moved ` +
		`WHERE object_key = $2 AND garbage_at > clock_timestamp() + $4 * interval '1 microsecond' RETURNING object_key` +
		`), released AS (` +
		`UPDATE upload_objects SET garbage_at = clock_timestamp() + ` + moveGrace + ` FROM moved WHERE object_key = $3` +
		`), rest AS (` +
		`DELETE FROM pending_upload_chunks USING moved WHERE pending_upload_chunks.file_id = moved.file_id` +
		`) SELECT (SELECT count(*) FROM moved), (SELECT count(*) FROM claimed)`

	sqlMoveIn = `WITH moved AS (` +
		`UPDATE pending_uploads SET content = $2, object_key = NULL WHERE file_id = $1 AND object_key = $3 RETURNING file_id` +
		`) UPDATE upload_objects SET garbage_at = clock_timestamp() + ` + moveGrace + ` FROM moved WHERE object_key = $3`
)

// errDigestMismatch: the bytes of a file are not those that its SHA-256 was made of.
var errDigestMismatch = errors.New("pendinguploads: bytes do not have the file's digest")

// CountMisplaced tells how many files, and bytes of them, are not where the options say.
func (b *ObjectStorage) CountMisplaced(ctx context.Context) (files, bytes int64, err error) {
	if err := b.db.QueryRowContext(ctx, sqlCountMisplaced, b.store, b.options.InlineBytes).Scan(&files, &bytes); err != nil {
		return 0, 0, fmt.Errorf("pendinguploads: count files to move: %w", err)
	}
	return files, bytes, nil
}

// Misplaced lists files that are not where the options say, by their ids, from after one on.
func (b *ObjectStorage) Misplaced(ctx context.Context, after uuid.UUID, limit int) ([]File, error) {
	rows, err := b.db.QueryContext(ctx, sqlMisplaced, b.store, b.options.InlineBytes, after, limit)
	if err != nil {
		return nil, fmt.Errorf("pendinguploads: list files to move: %w", err)
	}
	defer rows.Close()
	var files []File
	for rows.Next() {
		var f File
		if err := rows.Scan(append([]any{&f.Workspace}, f.columns()...)...); err != nil {
			return nil, fmt.Errorf("pendinguploads: list files to move: %w", err)
		}
		files = append(files, f)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("pendinguploads: list files to move: %w", err)
	}
	return files, nil
}

// Move brings the bytes of a file to where the options say, and reports whether it did: the file may
// be gone by now, or moved by another. At no moment is the file without its bytes, and they are
// compared with its digest, in the store as they are read back.
func (b *ObjectStorage) Move(ctx context.Context, f File) (bool, error) {
	moved, err := b.move(ctx, f)
	if err != nil {
		return false, fmt.Errorf("pendinguploads: move %s: %w", f.ID, err)
	}
	return moved, nil
}

func (b *ObjectStorage) move(ctx context.Context, f File) (bool, error) {
	f, at, first, err := b.find(ctx, f.Workspace, f.ID, openBytes)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	keys, outside := b.objectKeys([]NewFile{{Size: f.Size}})
	if at == nil && len(outside) == 0 || at != nil && at.store == b.store && b.store != 0 {
		return false, nil
	}
	source := b.contentAt(ctx, f, at, first)
	defer source.Close()
	if len(outside) == 0 {
		return b.moveIn(ctx, f, *at, source)
	}
	moved, err := b.moveOut(ctx, f, at, keys[0], source)
	if !moved {
		b.discard(ctx, keys, outside)
	}
	return moved, err
}

// moveOut brings a file to an object in the store for new files.
func (b *ObjectStorage) moveOut(ctx context.Context, f File, from *object, key uuid.UUID, source io.Reader) (bool, error) {
	file := NewFile{Name: f.Name, Size: f.Size, Content: source}
	if err := b.intend(ctx, []NewFile{file}, []uuid.UUID{key}, []int{0}); err != nil {
		return false, err
	}
	if err := b.write(ctx, f.Workspace, []NewFile{file}, []uuid.UUID{key}, []int{0}); err != nil {
		return false, err
	}
	if err := b.verify(ctx, f, object{key, b.store}); err != nil {
		return false, err
	}
	tx, err := b.staging.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit it does nothing
	var old uuid.NullUUID
	if from != nil {
		old = uuid.NullUUID{UUID: from.key, Valid: true}
	}
	var moved, claimed int
	if err := tx.QueryRowContext(ctx, sqlMoveOut, f.ID, key, old, commitMargin.Microseconds()).Scan(&moved, &claimed); err != nil {
		return false, err
	}
	if moved == 0 {
		return false, nil
	}
	if claimed == 0 {
		return false, errIntentOver
	}
	// Should the commit's answer be lost, the object must stay: it may have a file.
	return true, tx.Commit()
}

// verify compares an object with the digest of its file.
func (b *ObjectStorage) verify(ctx context.Context, f File, at object) error {
	stored := b.contentAt(ctx, f, &at, nil)
	defer stored.Close()
	digest := sha256.New()
	if _, err := io.Copy(digest, stored); err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if !bytes.Equal(digest.Sum(nil), f.SHA256[:]) {
		return errDigestMismatch
	}
	return nil
}

// moveIn brings a file from an object into the database. The row is changed last, since its ack would
// wait for that.
func (b *ObjectStorage) moveIn(ctx context.Context, f File, from object, source io.Reader) (bool, error) {
	tx, err := b.staging.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit it does nothing
	digest := sha256.New()
	hashed := io.TeeReader(source, digest)
	first := make([]byte, min(f.Size, ChunkBytes))
	if _, err := io.ReadFull(hashed, first); err != nil {
		return false, err
	}
	if err := b.moveRest(ctx, tx, f, hashed); err != nil {
		return false, err
	}
	if !bytes.Equal(digest.Sum(nil), f.SHA256[:]) {
		return false, errDigestMismatch
	}
	result, err := tx.ExecContext(ctx, sqlMoveIn, f.ID, first, from.key)
	if err != nil {
		return false, err
	}
	if n, _ := result.RowsAffected(); n == 0 { // lib/pq always knows it
		return false, nil
	}
	return true, tx.Commit()
}

// moveRest writes the pieces after the first.
func (b *ObjectStorage) moveRest(ctx context.Context, tx *sql.Tx, f File, source io.Reader) error {
	buffer := b.chunks.Get().(*[]byte)
	defer b.chunks.Put(buffer)
	for seq := int64(1); seq*ChunkBytes < f.Size; seq++ {
		piece := (*buffer)[:min(f.Size-seq*ChunkBytes, ChunkBytes)]
		if _, err := io.ReadFull(source, piece); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlInsertChunk, f.ID, seq, piece); err != nil {
			return fmt.Errorf("insert chunk %d: %w", seq, err)
		}
	}
	return nil
}
