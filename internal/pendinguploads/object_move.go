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

// A file is misplaced if it can be read and its content is not where the options say: $1 is the id of
// the store for new files, 0 for the database, and $2 the maximum size of files that stay in the database.
//
// The old object of a moved file stays for an hour: a client may be about to use its signed URL, and a
// standby that is promoted may not know of the move.
const (
	sqlCountMisplaced = `
SELECT count(*), coalesce(sum(size_bytes), 0)
FROM pending_uploads
WHERE (acked_at IS NOT NULL OR expires_at > now())
  AND CASE WHEN object_key IS NULL THEN $1 <> 0 AND size_bytes > $2
    ELSE $1 IS DISTINCT FROM (SELECT store_id FROM upload_objects o WHERE o.object_key = pending_uploads.object_key)
    END`

	sqlMisplaced = `
SELECT workspace_id, file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at
FROM pending_uploads
WHERE (acked_at IS NOT NULL OR expires_at > now())
  AND CASE WHEN object_key IS NULL THEN $1 <> 0 AND size_bytes > $2
    ELSE $1 IS DISTINCT FROM (SELECT store_id FROM upload_objects o WHERE o.object_key = pending_uploads.object_key)
    END
  AND file_id > $3
ORDER BY file_id
LIMIT $4`

	// Moves the content from $3, NULL if that is the database, to the object $2. It moves nothing if the
	// file was swept or moved by another meanwhile.
	sqlMoveOut = `
WITH moved AS (
  UPDATE pending_uploads SET content = '', object_key = $2
  WHERE file_id = $1 AND object_key IS NOT DISTINCT FROM $3
  RETURNING file_id
), claimed AS (
  UPDATE upload_objects SET file_id = moved.file_id, garbage_at = NULL
  FROM moved
  WHERE object_key = $2 AND garbage_at > clock_timestamp() + $4 * interval '1 microsecond'
  RETURNING object_key
), released AS (
  UPDATE upload_objects SET garbage_at = clock_timestamp() + interval '1 hour'
  FROM moved
  WHERE object_key = $3
), rest AS (
  DELETE FROM pending_upload_chunks USING moved WHERE pending_upload_chunks.file_id = moved.file_id
)
SELECT (SELECT count(*) FROM moved), (SELECT count(*) FROM claimed)`

	sqlMoveIn = `
WITH moved AS (
  UPDATE pending_uploads SET content = $2, object_key = NULL
  WHERE file_id = $1 AND object_key = $3
  RETURNING file_id
)
UPDATE upload_objects SET garbage_at = clock_timestamp() + interval '1 hour'
FROM moved
WHERE object_key = $3`
)

var errDigestMismatch = errors.New("pendinguploads: content does not have the SHA-256 of its file")

// CountMisplaced returns the number of misplaced files and their bytes.
func (s *ObjectStorage) CountMisplaced(ctx context.Context) (files, bytes int64, err error) {
	if err := s.postgres.db.QueryRowContext(ctx, sqlCountMisplaced, s.store, s.options.InlineBytes).Scan(&files, &bytes); err != nil {
		return 0, 0, fmt.Errorf("pendinguploads: count files to move: %w", err)
	}
	return files, bytes, nil
}

// Misplaced lists misplaced files, ordered by their ids, with ids greater than after.
func (s *ObjectStorage) Misplaced(ctx context.Context, after uuid.UUID, limit int) ([]File, error) {
	rows, err := s.postgres.db.QueryContext(ctx, sqlMisplaced, s.store, s.options.InlineBytes, after, limit)
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

// Move moves the content of a file to where the options say, and reports whether it did: the file may
// have been swept, or moved by another, meanwhile. The file can be read at every moment. Move reads the
// content back from an object store and compares it with the file's digest before it changes the row.
func (s *ObjectStorage) Move(ctx context.Context, f File) (bool, error) {
	moved, err := s.move(ctx, f)
	if err != nil {
		return false, fmt.Errorf("pendinguploads: move %s: %w", f.ID, err)
	}
	return moved, nil
}

func (s *ObjectStorage) move(ctx context.Context, f File) (bool, error) {
	f, at, first, err := s.locate(ctx, f.Workspace, f.ID, openBytes)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	keys, external := s.objectKeys([]NewFile{{Size: f.Size}})
	if at == nil && len(external) == 0 || at != nil && at.store == s.store && s.store != 0 {
		return false, nil
	}
	source := s.newReader(ctx, f, at, first)
	defer source.Close()
	if len(external) == 0 {
		return s.moveIn(ctx, f, *at, source)
	}
	moved, err := s.moveOut(ctx, f, at, keys[0], source)
	if !moved {
		s.discardObjects(ctx, keys, external)
	}
	return moved, err
}

// moveOut moves content to an object in the store for new files.
func (s *ObjectStorage) moveOut(ctx context.Context, f File, from *objectRef, key uuid.UUID, source io.Reader) (bool, error) {
	file := NewFile{Name: f.Name, Size: f.Size, Content: source}
	if err := s.insertObjects(ctx, []NewFile{file}, []uuid.UUID{key}, []int{0}); err != nil {
		return false, err
	}
	if err := s.writeObjects(ctx, f.Workspace, []NewFile{file}, []uuid.UUID{key}, []int{0}); err != nil {
		return false, err
	}
	if err := s.verifyObject(ctx, f, objectRef{key, s.store}); err != nil {
		return false, err
	}
	tx, err := s.postgres.staging.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback() // after a commit it does nothing
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
		return false, errObjectExpired
	}
	// If the answer to the commit is lost, the object must stay: the file may use it.
	return true, tx.Commit()
}

// verifyObject compares an object with the digest of its file.
func (s *ObjectStorage) verifyObject(ctx context.Context, f File, at objectRef) error {
	stored := s.newReader(ctx, f, &at, nil)
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

// moveIn moves content from an object to the database. It updates the row last: an acknowledgement of
// the file waits from then on until the commit.
func (s *ObjectStorage) moveIn(ctx context.Context, f File, from objectRef, source io.Reader) (bool, error) {
	tx, err := s.postgres.staging.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback() // after a commit it does nothing
	digest := sha256.New()
	hashed := io.TeeReader(source, digest)
	first := make([]byte, min(f.Size, ChunkBytes))
	if _, err := io.ReadFull(hashed, first); err != nil {
		return false, err
	}
	if err := s.insertChunks(ctx, tx, f, hashed); err != nil {
		return false, err
	}
	if !bytes.Equal(digest.Sum(nil), f.SHA256[:]) {
		return false, errDigestMismatch
	}
	result, err := tx.ExecContext(ctx, sqlMoveIn, f.ID, first, from.key)
	if err != nil {
		return false, err
	}
	if n, _ := result.RowsAffected(); n == 0 { // lib/pq never fails here
		return false, nil
	}
	return true, tx.Commit()
}

// insertChunks inserts the chunks after the first.
func (s *ObjectStorage) insertChunks(ctx context.Context, tx *sql.Tx, f File, source io.Reader) error {
	buffer := s.postgres.buffers.Get().(*[]byte)
	defer s.postgres.buffers.Put(buffer)
	for seq := int64(1); seq*ChunkBytes < f.Size; seq++ {
		data := (*buffer)[:min(f.Size-seq*ChunkBytes, ChunkBytes)]
		if _, err := io.ReadFull(source, data); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlInsertChunk, f.ID, seq, data); err != nil {
			return fmt.Errorf("insert chunk %d: %w", seq, err)
		}
	}
	return nil
}
