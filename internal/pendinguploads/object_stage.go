package pendinguploads

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"golang.org/x/sync/errgroup"
)

const (
	// maxObjectWrites is how many objects are written at the same time, maxObjectWritesPerUpload how
	// many of one upload.
	maxObjectWrites          = 8
	maxObjectWritesPerUpload = 4

	// maxKeyedUploads is how many uploads with a key write objects at the same time. Each holds a
	// connection meanwhile, and if the store hangs, for long.
	maxKeyedUploads = 4

	// unclaimedTTL is how long an object may exist without a file before the sweep deletes it: far
	// longer than any upload takes to commit.
	unclaimedTTL = 6 * time.Hour

	// writeTimeout bounds writing the objects of an upload, so that its reservation is still valid after.
	writeTimeout = reservationTTL - commitMargin

	// lateWriteGrace is how long after an upload was given up one of its writes may still take effect in
	// an object store.
	lateWriteGrace = 10 * time.Minute

	// discardTimeout bounds deleting the objects of an upload that failed. The sweep deletes the rest.
	discardTimeout = 10 * time.Second

	// keepaliveInterval is how often a transaction that waits for objects runs a statement. PostgreSQL
	// ends transactions that idle for idle_in_transaction_session_timeout, which we set to 15 s.
	keepaliveInterval = 5 * time.Second
)

const (
	sqlInsertObjects = `
INSERT INTO upload_objects (object_key, store_id, size_bytes, garbage_at)
SELECT o.key, $1, o.size, now() + $4 * interval '1 microsecond'
FROM unnest($2::uuid[], $3::bigint[]) AS o (key, size)`

	// Inserts the row of a file and claims its object, both or neither. An object that is nearly garbage,
	// or is being deleted, cannot be claimed any more; then there is no row in the result.
	sqlInsertObjectFile = `
WITH file AS (
  INSERT INTO pending_uploads (workspace_id, filename, mimetype, size_bytes, sha256, content, expires_at, object_key)
  VALUES ($1, $2, $3, $4, $5, '', clock_timestamp() + $6 * interval '1 microsecond', $7)
  RETURNING file_id, created_at, expires_at
), claimed AS (
  UPDATE upload_objects SET file_id = (SELECT file_id FROM file), garbage_at = NULL
  WHERE object_key = $7 AND garbage_at > clock_timestamp() + $8 * interval '1 microsecond'
  RETURNING file_id
)
SELECT file_id, created_at, expires_at FROM file JOIN claimed USING (file_id)`

	sqlExpireObjects = `
UPDATE upload_objects SET garbage_at = least(garbage_at, now() + $2 * interval '1 microsecond')
WHERE object_key = ANY($1) AND file_id IS NULL`

	sqlKeepalive = `SELECT 1`
)

var errObjectExpired = errors.New("pendinguploads: staging took too long; its objects are garbage already")

// Stage implements Storage.
func (s *ObjectStorage) Stage(ctx context.Context, workspace uuid.UUID, files []NewFile) ([]File, error) {
	staged, _, err := s.StageOnce(ctx, workspace, "", files)
	return staged, err
}

// StageOnce implements Storage. While content goes to the object store it holds no connection, unless
// the upload has a key: then its transaction holds the lock of the key.
func (s *ObjectStorage) StageOnce(ctx context.Context, workspace uuid.UUID, key string, files []NewFile) ([]File, bool, error) {
	keys, external := s.objectKeys(files)
	if len(external) == 0 {
		return s.postgres.StageOnce(ctx, workspace, key, files)
	}
	if err := s.postgres.limits.validate(files); err != nil {
		return nil, false, err
	}
	var tx *sql.Tx
	if key != "" {
		if err := s.keyedUploads.Acquire(ctx, workspace, 1); err != nil {
			return nil, false, fmt.Errorf("pendinguploads: wait to write %d files: %w", len(files), err)
		}
		defer s.keyedUploads.Release(workspace, 1)
		var replayed []File
		var err error
		if tx, replayed, err = s.postgres.begin(ctx, workspace, key, files); err != nil || replayed != nil {
			return replayed, replayed != nil, err
		}
		defer tx.Rollback() // after a commit it does nothing
	}
	reservation, err := s.postgres.reserve(ctx, nil, workspace, files)
	if err != nil {
		return nil, false, err
	}
	staged, err := s.stageObjects(ctx, tx, upload{workspace: workspace, key: key, files: files, reservation: reservation}, keys, external)
	if err != nil {
		if tx != nil {
			_ = tx.Rollback()
		}
		s.postgres.release(ctx, reservation)
		return nil, false, err
	}
	return staged, false, nil
}

// objectKeys returns a key for each file, uuid.Nil for those whose content goes to the database, and
// the indexes of the others.
func (s *ObjectStorage) objectKeys(files []NewFile) (keys []uuid.UUID, external []int) {
	keys = make([]uuid.UUID, len(files))
	for i, f := range files {
		if s.options.URL != "" && f.Size > s.options.InlineBytes {
			keys[i] = uuid.New()
			external = append(external, i)
		}
	}
	return keys, external
}

// stageObjects writes the objects of an upload and then makes the upload visible in tx. If tx is nil it
// begins a transaction after the objects are written.
func (s *ObjectStorage) stageObjects(ctx context.Context, tx *sql.Tx, u upload, keys []uuid.UUID, external []int) ([]File, error) {
	if err := s.insertObjects(ctx, u.files, keys, external); err != nil {
		return nil, err
	}
	var staged []File
	err := s.withKeepalive(ctx, tx, func(ctx context.Context) error { return s.writeObjects(ctx, u.workspace, u.files, keys, external) })
	if err == nil && tx == nil {
		if tx, _, err = s.postgres.begin(ctx, u.workspace, "", nil); err == nil {
			defer tx.Rollback() // after a commit it does nothing
		}
	}
	if err == nil {
		u.insert = func(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, i int, f NewFile) (File, error) {
			if keys[i] == uuid.Nil {
				return s.postgres.insertFile(ctx, tx, workspace, i, f)
			}
			return s.insertObjectFile(ctx, tx, workspace, keys[i], f)
		}
		staged, err = s.postgres.stageInTx(ctx, tx, u)
	}
	if err != nil {
		if tx != nil {
			_ = tx.Rollback() // before the objects are discarded: until then files claim them
		}
		s.discardObjects(ctx, keys, external)
		return nil, err
	}
	// After a failed commit the files may exist, so their objects must stay. If the files do not exist,
	// the objects become garbage after unclaimedTTL.
	if err := commit(tx, u.workspace, u.files); err != nil {
		return nil, err
	}
	return staged, nil
}

// insertObjects records the objects that are about to be written, in a transaction of its own.
func (s *ObjectStorage) insertObjects(ctx context.Context, files []NewFile, keys []uuid.UUID, external []int) error {
	list, sizes := make([]string, len(external)), make([]int64, len(external))
	for n, i := range external {
		list[n], sizes[n] = keys[i].String(), files[i].Size
	}
	// Not through a pooler: an upload with a key holds one of its sessions already.
	if _, err := s.postgres.sessions.ExecContext(ctx, sqlInsertObjects, s.store, pq.Array(list), pq.Array(sizes), unclaimedTTL.Microseconds()); err != nil {
		return fmt.Errorf("pendinguploads: record %d objects: %w", len(external), err)
	}
	return nil
}

// writeObjects writes the objects, a few at the same time.
func (s *ObjectStorage) writeObjects(ctx context.Context, workspace uuid.UUID, files []NewFile, keys []uuid.UUID, external []int) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	store, err := s.stores.get(ctx, s.store)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxObjectWritesPerUpload)
	for _, i := range external {
		g.Go(func() error {
			err := s.objectWrites.Do(ctx, workspace, func() error { return s.writeObject(ctx, store, keys[i], files[i]) })
			if err != nil {
				return fmt.Errorf("pendinguploads: write %s to the object store: %w", files[i].Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// withKeepalive calls do and keeps tx from being ended for idling meanwhile. If tx is lost, it cancels
// do and returns an error.
func (s *ObjectStorage) withKeepalive(ctx context.Context, tx *sql.Tx, do func(context.Context) error) error {
	if tx == nil {
		return do(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	ticker := time.NewTicker(s.keepaliveInterval)
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ticker.C:
			if _, err := tx.ExecContext(ctx, sqlKeepalive); err != nil {
				cancel()
				<-done
				return fmt.Errorf("pendinguploads: keep the transaction of a key alive: %w", err)
			}
		}
	}
}

// insertObjectFile inserts the row of a file whose content is an object.
func (s *ObjectStorage) insertObjectFile(ctx context.Context, tx *sql.Tx, workspace, key uuid.UUID, f NewFile) (File, error) {
	file := File{Workspace: workspace, Name: f.Name, MIMEType: f.MIMEType, Size: f.Size, SHA256: f.SHA256}
	row := tx.QueryRowContext(ctx, sqlInsertObjectFile, workspace, f.Name, f.MIMEType, f.Size, f.SHA256[:],
		s.postgres.limits.TTL.Microseconds(), key, commitMargin.Microseconds())
	err := row.Scan(&file.ID, &file.CreatedAt, &file.ExpiresAt)
	if errors.Is(err, sql.ErrNoRows) {
		err = errObjectExpired
	}
	if err != nil {
		return File{}, fmt.Errorf("insert: %w", err)
	}
	return file, nil
}

// discardObjects deletes the objects of an upload that failed, as far as it can, even if ctx has ended.
// Their rows stay until lateWriteGrace has passed: a write that was cancelled may still create its
// object after this.
func (s *ObjectStorage) discardObjects(ctx context.Context, keys []uuid.UUID, external []int) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTimeout)
	defer cancel()
	var list []string
	var garbage []objectRef
	for _, i := range external {
		list = append(list, keys[i].String())
		garbage = append(garbage, objectRef{keys[i], s.store})
	}
	_, _ = s.postgres.db.ExecContext(ctx, sqlExpireObjects, pq.Array(list), lateWriteGrace.Microseconds())
	_, _ = s.deleteObjects(ctx, garbage)
}
