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
	// sweepObjects is how many objects are deleted in a batch, maxDeletes how many at once.
	sweepObjects = 200
	maxDeletes   = 8

	// deleteTimeout is how long a store may take to delete an object, so that one that hangs does not
	// use up the time of the others.
	deleteTimeout = 5 * time.Second

	// sweepLease is how long nobody else tries to delete an object that is being deleted, or that
	// could not be; it is longer than a batch takes.
	sweepLease = time.Minute

	// Garbage stays garbage: an object that is here is claimed by no file any more.
	sqlClaimGarbage = `UPDATE upload_objects SET garbage_at = now() + $2 * interval '1 microsecond' WHERE object_key = ANY(ARRAY(` +
		`SELECT object_key FROM upload_objects WHERE garbage_at <= now() ORDER BY garbage_at LIMIT $1 FOR UPDATE SKIP LOCKED)) ` +
		`RETURNING object_key, store_id`

	sqlDeleteObjects = `DELETE FROM upload_objects WHERE object_key = ANY($1)`

	sqlGarbage = `SELECT count(*) FROM upload_objects WHERE garbage_at <= now()`
)

// Sweep implements Storage: the rows, then the objects that have no file any more.
func (b *ObjectStorage) Sweep(ctx context.Context, retention time.Duration) (Swept, error) {
	s, err := b.Postgres.Sweep(ctx, retention)
	if err != nil {
		return s, err
	}
	more, err := b.sweepObjects(ctx)
	if s.More {
		return s, nil // a store that fails keeps no rows from being swept; the last batch tells of it
	}
	s.More = s.More || more
	return s, err
}

// sweepObjects deletes a batch of garbage, and reports whether there is more. What cannot be
// deleted is tried again in a while.
func (b *ObjectStorage) sweepObjects(ctx context.Context) (bool, error) {
	garbage, err := b.claimGarbage(ctx)
	if err != nil {
		return false, fmt.Errorf("pendinguploads: find garbage: %w", err)
	}
	gone, failed := b.deleteObjects(ctx, garbage)
	if len(gone) > 0 {
		// Also if the stores took all the time there was: else they would be asked the same again.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTimeout)
		defer cancel()
		if _, err := b.db.ExecContext(ctx, sqlDeleteObjects, pq.Array(gone)); err != nil {
			return false, fmt.Errorf("pendinguploads: forget %d deleted objects: %w", len(gone), err)
		}
	}
	if failed != nil && len(gone) == 0 { // else there may be more that can be deleted; the others are leased
		return false, fmt.Errorf("pendinguploads: delete objects: %d of %d failed: %w", len(garbage)-len(gone), len(garbage), failed)
	}
	return len(garbage) == sweepObjects, nil
}

func (b *ObjectStorage) claimGarbage(ctx context.Context) ([]object, error) {
	rows, err := b.db.QueryContext(ctx, sqlClaimGarbage, sweepObjects, sweepLease.Microseconds())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var garbage []object
	for rows.Next() {
		var o object
		if err := rows.Scan(&o.key, &o.store); err != nil {
			return nil, err
		}
		garbage = append(garbage, o)
	}
	return garbage, rows.Err()
}

// deleteObjects deletes objects, a few at once, and returns the keys of those that are gone, and why
// the first of the others is not.
func (b *ObjectStorage) deleteObjects(ctx context.Context, garbage []object) (gone []string, failed error) {
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(maxDeletes)
	for _, o := range garbage {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
			defer cancel()
			store, err := b.stores.get(ctx, o.store)
			if err == nil {
				err = store.Delete(ctx, o.key)
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				gone = append(gone, o.key.String())
			}
			return err
		})
	}
	failed = g.Wait()
	return gone, failed
}

// ReadGarbage tells how many objects wait to be deleted.
func ReadGarbage(ctx context.Context, db *sql.DB) (int64, error) {
	var n int64
	if err := db.QueryRowContext(ctx, sqlGarbage).Scan(&n); err != nil {
		return 0, fmt.Errorf("pendinguploads: count garbage: %w", err)
	}
	return n, nil
}
