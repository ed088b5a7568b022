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
	// maxWrites is how many objects are written at once, maxUploadWrites how many of one upload.
	maxWrites       = 8
	maxUploadWrites = 4

	// maxKeyed is how many uploads with a key write objects at once: each has a connection meanwhile, and
	// those of a store that hangs have it for long.
	maxKeyed = 4

	// intentTTL is how long an object may be without a file before it is garbage: far longer than a
	// transaction can take to make it one.
	intentTTL = 6 * time.Hour

	// writeTimeout is how long the objects of an upload may take, so that its reservation still holds.
	writeTimeout = reservationTTL - commitMargin

	// lateWrite is how long after it was given up a write may still arrive at a bucket.
	lateWrite = 10 * time.Minute

	// discardTimeout bounds deleting the objects of an upload that failed; the sweep does the rest.
	discardTimeout = 10 * time.Second

	// aliveInterval is how often a transaction is used that waits for objects: PostgreSQL ends those
	// that are idle for longer than idle_in_transaction_session_timeout, 15 s by default.
	aliveInterval = 5 * time.Second
)

const (
	sqlIntend = `INSERT INTO upload_objects (object_key, store_id, size_bytes, garbage_at) ` +
		`SELECT o.key, $1, o.size, now() + $4 * interval '1 microsecond' FROM unnest($2::uuid[], $3::bigint[]) AS o (key, size)`

	// The row of a file and its claim on the object, both or neither: an object that is nearly
	// garbage, or being deleted, is claimed no more.
	sqlInsertOutside = `WITH file AS (` +
		`INSERT INTO pending_uploads (workspace_id, filename, mimetype, size_bytes, sha256, content, expires_at, object_key) ` +
		`VALUES ($1, $2, $3, $4, $5, '', clock_timestamp() + $6 * interval '1 microsecond', $7) RETURNING file_id, created_at, expires_at` +
		`), claimed AS (` +
		`UPDATE upload_objects SET file_id = (SELECT file_id FROM file), garbage_at = NULL ` +
		`WHERE object_key = $7 AND garbage_at > clock_timestamp() + $8 * interval '1 microsecond' RETURNING file_id` +
		`) SELECT file_id, created_at, expires_at FROM file JOIN claimed USING (file_id)`

	sqlAbandon = `UPDATE upload_objects SET garbage_at = least(garbage_at, now() + $2 * interval '1 microsecond') ` +
		`WHERE object_key = ANY($1) AND file_id IS NULL`

	sqlAlive = `SELECT 1`
)

// errIntentOver: staging took longer than an object may be without a file.
var errIntentOver = errors.New("pendinguploads: object is garbage already")

// Stage implements Storage.
func (b *ObjectStorage) Stage(ctx context.Context, workspace uuid.UUID, files []NewFile) ([]File, error) {
	staged, _, err := b.StageOnce(ctx, workspace, "", files)
	return staged, err
}

// StageOnce implements Storage. Nothing of the database is held while bytes go to the store, but by
// an upload with a key: its transaction is the key's lock.
func (b *ObjectStorage) StageOnce(ctx context.Context, workspace uuid.UUID, key string, files []NewFile) ([]File, bool, error) {
	keys, outside := b.objectKeys(files)
	if len(outside) == 0 {
		return b.Postgres.StageOnce(ctx, workspace, key, files)
	}
	if err := b.limits.check(files); err != nil {
		return nil, false, err
	}
	var tx *sql.Tx
	if key != "" {
		if err := b.keyed.Acquire(ctx, workspace, 1); err != nil {
			return nil, false, fmt.Errorf("pendinguploads: wait to write %d files: %w", len(files), err)
		}
		defer b.keyed.Release(workspace, 1)
		var replayed []File
		var err error
		if tx, replayed, err = b.begin(ctx, workspace, key, files); err != nil || replayed != nil {
			return replayed, replayed != nil, err
		}
		defer tx.Rollback() //nolint:errcheck // after a commit it does nothing
	}
	room, err := b.reserve(ctx, nil, workspace, files)
	if err != nil {
		return nil, false, err
	}
	staged, err := b.stageOutside(ctx, tx, upload{workspace: workspace, key: key, files: files, room: room}, keys, outside)
	if err != nil {
		if tx != nil {
			_ = tx.Rollback()
		}
		b.release(ctx, room)
		return nil, false, err
	}
	return staged, false, nil
}

// objectKeys gives each file that is to have an object a key, Nil to the others, and lists the former.
func (b *ObjectStorage) objectKeys(files []NewFile) (keys []uuid.UUID, outside []int) {
	keys = make([]uuid.UUID, len(files))
	for i, f := range files {
		if b.options.URL != "" && f.Size > b.options.InlineBytes {
			keys[i] = uuid.New()
			outside = append(outside, i)
		}
	}
	return keys, outside
}

// stageOutside writes the objects of an upload, and then makes it visible in tx, or in a
// transaction of its own if there is none.
func (b *ObjectStorage) stageOutside(ctx context.Context, tx *sql.Tx, u upload, keys []uuid.UUID, outside []int) ([]File, error) {
	if err := b.intend(ctx, u.files, keys, outside); err != nil {
		return nil, err
	}
	var staged []File
	err := b.holding(ctx, tx, func(ctx context.Context) error { return b.write(ctx, u.workspace, u.files, keys, outside) })
	if err == nil && tx == nil {
		if tx, _, err = b.begin(ctx, u.workspace, "", nil); err == nil {
			defer tx.Rollback() //nolint:errcheck // after a commit it does nothing
		}
	}
	if err == nil {
		u.write = func(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, i int, f NewFile) (File, error) {
			if keys[i] == uuid.Nil {
				return b.insert(ctx, tx, workspace, i, f)
			}
			return b.insertOutside(ctx, tx, workspace, keys[i], f)
		}
		staged, err = b.stage(ctx, tx, u)
	}
	if err != nil {
		if tx != nil {
			_ = tx.Rollback() // first: until then the objects have files
		}
		b.discard(ctx, keys, outside)
		return nil, err
	}
	// If this fails, nobody knows whether the files are there: their objects must stay. If they are
	// not, the objects are garbage in time.
	if err := commit(tx, u.workspace, u.files); err != nil {
		return nil, err
	}
	return staged, nil
}

// intend notes the objects that are about to be written, in a transaction of its own.
func (b *ObjectStorage) intend(ctx context.Context, files []NewFile, keys []uuid.UUID, outside []int) error {
	list, sizes := make([]string, len(outside)), make([]int64, len(outside))
	for n, i := range outside {
		list[n], sizes[n] = keys[i].String(), files[i].Size
	}
	// Past a pooler: an upload with a key holds one of its sessions already.
	if _, err := b.sessions.ExecContext(ctx, sqlIntend, b.store, pq.Array(list), pq.Array(sizes), intentTTL.Microseconds()); err != nil {
		return fmt.Errorf("pendinguploads: intend %d objects: %w", len(outside), err)
	}
	return nil
}

// write writes the objects, a few at once.
func (b *ObjectStorage) write(ctx context.Context, workspace uuid.UUID, files []NewFile, keys []uuid.UUID, outside []int) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	store, err := b.stores.get(ctx, b.store)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxUploadWrites)
	for _, i := range outside {
		g.Go(func() error {
			err := b.writes.Do(ctx, workspace, func() error { return b.writeObject(ctx, store, keys[i], files[i]) })
			if err != nil {
				return fmt.Errorf("pendinguploads: write %s to the store: %w", files[i].Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// holding does something that takes long while tx is open, and keeps tx from being ended for it.
func (b *ObjectStorage) holding(ctx context.Context, tx *sql.Tx, do func(context.Context) error) error {
	if tx == nil {
		return do(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	again := time.NewTicker(b.alive)
	defer again.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-again.C:
			if _, err := tx.ExecContext(ctx, sqlAlive); err != nil {
				cancel()
				<-done
				return fmt.Errorf("pendinguploads: keep the transaction of a key: %w", err)
			}
		}
	}
}

// insertOutside makes the row of a file that has an object.
func (b *ObjectStorage) insertOutside(ctx context.Context, tx *sql.Tx, workspace, key uuid.UUID, f NewFile) (File, error) {
	file := File{Workspace: workspace, Name: f.Name, MIMEType: f.MIMEType, Size: f.Size, SHA256: f.SHA256}
	row := tx.QueryRowContext(ctx, sqlInsertOutside, workspace, f.Name, f.MIMEType, f.Size, f.SHA256[:], b.limits.TTL.Microseconds(),
		key, commitMargin.Microseconds())
	err := row.Scan(&file.ID, &file.CreatedAt, &file.ExpiresAt)
	if errors.Is(err, sql.ErrNoRows) {
		err = errIntentOver
	}
	if err != nil {
		return File{}, fmt.Errorf("insert: %w", err)
	}
	return file, nil
}

// discard deletes the objects of an upload that failed, as well as it can, also if ctx is over. The
// rows stay for a while: what was on its way to a bucket may arrive after it was deleted there.
func (b *ObjectStorage) discard(ctx context.Context, keys []uuid.UUID, outside []int) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTimeout)
	defer cancel()
	var list []string
	var garbage []object
	for _, i := range outside {
		list = append(list, keys[i].String())
		garbage = append(garbage, object{keys[i], b.store})
	}
	_, _ = b.db.ExecContext(ctx, sqlAbandon, pq.Array(list), lateWrite.Microseconds())
	_, _ = b.deleteObjects(ctx, garbage)
}
