package pendinguploads

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"

	"github.com/lib/pq"
	"golang.org/x/sync/errgroup"
)

const (
	// sweepObjects is how many objects are deleted in a batch, maxObjectDeletes how many at the same time.
	sweepObjects     = 200
	maxObjectDeletes = 8

	// deleteTimeout bounds deleting one object, so that a store that hangs does not use up the time
	// of the others.
	deleteTimeout = 5 * time.Second

	// sweepLease is how long no other replica tries to delete an object that is being deleted or could
	// not be deleted. It is longer than a batch takes.
	sweepLease = time.Minute

	// Leases a batch of garbage. An object that is garbage stays garbage: no file can claim it any more.
	sqlClaimGarbage = `
UPDATE upload_objects SET garbage_at = now() + $2 * interval '1 microsecond'
WHERE object_key = ANY(ARRAY(
  SELECT object_key FROM upload_objects WHERE garbage_at <= now() ORDER BY garbage_at LIMIT $1 FOR UPDATE SKIP LOCKED
))
RETURNING object_key, store_id`

	sqlDeleteObjects = `DELETE FROM upload_objects WHERE object_key = ANY($1)`

	sqlGarbage = `SELECT count(*) FROM upload_objects WHERE garbage_at <= now()`
)

// Sweep implements Storage: first the rows, then the objects that have no file any more.
func (s *ObjectStorage) Sweep(ctx context.Context, retention time.Duration) (Swept, error) {
	swept, err := s.postgres.Sweep(ctx, retention)
	if err != nil {
		return swept, err
	}
	more, err := s.sweepObjects(ctx)
	if swept.More {
		return swept, nil // a failing store does not stop the sweep of rows; the last batch reports it
	}
	swept.More = more
	return swept, err
}

// sweepObjects deletes a batch of garbage and reports whether there may be more. Objects that cannot be
// deleted are tried again after sweepLease.
func (s *ObjectStorage) sweepObjects(ctx context.Context) (bool, error) {
	garbage, err := s.claimGarbage(ctx)
	if err != nil {
		return false, fmt.Errorf("pendinguploads: claim garbage objects: %w", err)
	}
	deleted, failed := s.deleteObjects(ctx, garbage)
	if len(deleted) > 0 {
		// Also if ctx has ended: otherwise the same objects would be deleted again by the next sweep.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTimeout)
		defer cancel()
		if _, err := s.postgres.db.ExecContext(ctx, sqlDeleteObjects, pq.Array(deleted)); err != nil {
			return false, fmt.Errorf("pendinguploads: delete the rows of %d deleted objects: %w", len(deleted), err)
		}
	}
	if failed != nil && len(deleted) == 0 { // if some were deleted, go on: the others are leased
		return false, fmt.Errorf("pendinguploads: delete objects: %d of %d failed: %w", len(garbage)-len(deleted), len(garbage), failed)
	}
	return len(garbage) == sweepObjects, nil
}

func (s *ObjectStorage) claimGarbage(ctx context.Context) ([]objectRef, error) {
	rows, err := s.postgres.db.QueryContext(ctx, sqlClaimGarbage, sweepObjects, sweepLease.Microseconds())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var garbage []objectRef
	for rows.Next() {
		var ref objectRef
		if err := rows.Scan(&ref.key, &ref.store); err != nil {
			return nil, err
		}
		garbage = append(garbage, ref)
	}
	return garbage, rows.Err()
}

// deleteObjects deletes objects, a few at the same time. It returns the keys of those that were deleted
// and the first error of the others.
func (s *ObjectStorage) deleteObjects(ctx context.Context, garbage []objectRef) (deleted []string, failed error) {
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(maxObjectDeletes)
	for _, ref := range garbage {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
			defer cancel()
			store, err := s.stores.get(ctx, ref.store)
			if err == nil {
				err = store.Delete(ctx, ref.key)
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				deleted = append(deleted, ref.key.String())
			}
			return err
		})
	}
	failed = g.Wait()
	return deleted, failed
}

// ReadGarbage counts the objects that the next sweeps will delete.
func ReadGarbage(ctx context.Context, db *sql.DB) (int64, error) {
	var n int64
	if err := db.QueryRowContext(ctx, sqlGarbage).Scan(&n); err != nil {
		return 0, fmt.Errorf("pendinguploads: count garbage objects: %w", err)
	}
	return n, nil
}
