// Package storageadmin has the operator's commands for object stores: Reconcile compares the stores
// with the database, and Migrate moves files to where the configuration says.
//
// Reconcile deletes nothing that a file uses, and nothing that is younger than an hour: an upload that
// is running may use it. Both may run beside any number of platforms.
package storageadmin

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/platform/internal/objectstore"
)

const (
	// minOrphanAge is how old an object or a row must be before it can be an orphan. A row is always
	// older than its object, so this is only for clocks that differ.
	minOrphanAge = time.Hour

	pageSize       = 500 // objects or files compared in one statement
	parallelChecks = 8   // objects whose size is requested at the same time
	maxReported    = 20  // findings that are reported one by one
)

const (
	sqlStores = `SELECT id, url, namespace FROM upload_stores ORDER BY id`

	sqlUnknownObjects = `
SELECT k
FROM unnest($1::uuid[]) AS k
WHERE NOT EXISTS (SELECT FROM upload_objects WHERE object_key = k AND store_id = $2)
  AND NOT EXISTS (SELECT FROM pending_uploads WHERE object_key = k)`

	// Rows without a file are left by a deletion of files that bypassed the trigger, and by failed
	// uploads that are not swept yet.
	sqlUnowned = `
SELECT o.object_key
FROM upload_objects o
WHERE o.store_id = $1
  AND o.created_at < now() - $2 * interval '1 microsecond'
  AND NOT EXISTS (SELECT FROM pending_uploads p WHERE p.object_key = o.object_key)
  AND (o.garbage_at IS NULL OR o.garbage_at <= now())
  AND o.object_key > $3
ORDER BY o.object_key
LIMIT $4`

	sqlDeleteUnowned = `
DELETE FROM upload_objects o
WHERE object_key = $1
  AND NOT EXISTS (SELECT FROM pending_uploads p WHERE p.object_key = o.object_key)`

	sqlOwned = `
SELECT p.file_id, p.object_key, p.size_bytes, o.store_id
FROM pending_uploads p
LEFT JOIN upload_objects o USING (object_key)
WHERE p.object_key > $1
ORDER BY p.object_key
LIMIT $2`

	sqlStillOwned = `SELECT EXISTS (SELECT FROM pending_uploads WHERE file_id = $1 AND object_key = $2)`

	sqlWrongSizeInDatabase = `
SELECT count(*)
FROM pending_uploads p
WHERE object_key IS NULL
  AND size_bytes <> octet_length(content)
    + coalesce((SELECT sum(octet_length(data)) FROM pending_upload_chunks c WHERE c.file_id = p.file_id), 0)`
)

// ErrBroken reports files without their content.
var ErrBroken = errors.New("there are files whose content is missing or incomplete; nothing was changed about them")

// Found counts what Reconcile found.
type Found struct {
	Objects     int   // objects in the stores
	Orphans     int   // objects without a row
	OrphanBytes int64 // bytes of the orphans
	Partial     int   // temporary files of interrupted writes to a folder
	Unfinished  int   // multipart uploads that were never completed
	Unowned     int   // rows of objects without a file
	Foreign     int   // objects in the namespace with a name that the platform does not use; never deleted
	Files       int   // files with their content in a store
	Missing     int   // files whose object is missing
	WrongSize   int   // files whose content has another size
}

// reconciler compares stores with the database.
type reconciler struct {
	db       *sql.DB
	fix      bool
	report   func(format string, args ...any)
	found    Found
	reported int
}

// Reconcile compares all object stores with the database. It finds orphans, and deletes them if fix is
// set; and files without their content, about which it does nothing: then it returns ErrBroken. It calls
// report with a line for each finding, up to a limit. A store that cannot be read is an error too, and
// the other stores are compared all the same.
func Reconcile(ctx context.Context, db *sql.DB, fix bool, report func(format string, args ...any)) (Found, error) {
	r := &reconciler{db: db, fix: fix, report: report}
	rows, err := db.QueryContext(ctx, sqlStores)
	if err != nil {
		return r.found, fmt.Errorf("storageadmin: list stores: %w", err)
	}
	defer rows.Close()
	type storeRow struct {
		id        int
		url       string
		namespace uuid.UUID
	}
	var stores []storeRow
	for rows.Next() {
		var s storeRow
		if err := rows.Scan(&s.id, &s.url, &s.namespace); err != nil {
			return r.found, fmt.Errorf("storageadmin: list stores: %w", err)
		}
		stores = append(stores, s)
	}
	if err := rows.Err(); err != nil {
		return r.found, fmt.Errorf("storageadmin: list stores: %w", err)
	}
	var errs []error
	opened := map[int]*objectstore.Store{}
	for _, s := range stores {
		store, err := objectstore.Open(ctx, s.url, s.namespace)
		if err == nil {
			defer store.Close() // every operation has returned its own error
			opened[s.id] = store
			err = r.compareStore(ctx, s.id, store)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("storageadmin: %s: %w", s.url, err))
			delete(opened, s.id)
		}
	}
	if err := r.compareFiles(ctx, opened); err != nil {
		errs = append(errs, err)
	}
	if r.found.Missing+r.found.WrongSize > 0 {
		errs = append(errs, ErrBroken)
	}
	return r.found, errors.Join(errs...)
}

// finding reports one finding.
func (r *reconciler) finding(format string, args ...any) {
	if r.reported++; r.reported <= maxReported {
		r.report(format, args...)
	} else if r.reported == maxReported+1 {
		r.report("... and more; the summary counts them")
	}
}

// compareStore finds the orphans of a store.
func (r *reconciler) compareStore(ctx context.Context, id int, store *objectstore.Store) error {
	before := time.Now().Add(-minOrphanAge)
	var candidates []objectstore.Object
	err := store.List(ctx, func(o objectstore.Object) error {
		r.found.Objects++
		switch {
		case o.Key == uuid.Nil:
			r.found.Foreign++
			r.finding("%s: not a name that the platform uses; not deleted", o.Name)
			return nil
		case o.Modified.After(before):
			return nil
		case o.Partial:
			r.found.Partial++
			r.finding("%s: temporary file of an interrupted write, %d bytes", o.Name, o.Size)
			return r.remove(ctx, store, o)
		}
		if candidates = append(candidates, o); len(candidates) < pageSize {
			return nil
		}
		err := r.removeOrphans(ctx, id, store, candidates)
		candidates = candidates[:0]
		return err
	})
	if err != nil {
		return err
	}
	if err := r.removeOrphans(ctx, id, store, candidates); err != nil {
		return err
	}
	if err := store.Unfinished(ctx, before, func(name string, abort func() error) error {
		r.found.Unfinished++
		r.finding("%s: multipart upload that was never completed", name)
		if !r.fix {
			return nil
		}
		return abort()
	}); err != nil {
		return err
	}
	return r.removeUnowned(ctx, id, store)
}

func (r *reconciler) remove(ctx context.Context, store *objectstore.Store, o objectstore.Object) error {
	if !r.fix {
		return nil
	}
	return store.Remove(ctx, o.Name)
}

// removeOrphans finds the objects of a page that have no row.
func (r *reconciler) removeOrphans(ctx context.Context, id int, store *objectstore.Store, page []objectstore.Object) error {
	byKey := map[string]objectstore.Object{}
	keys := make([]string, len(page))
	for i, o := range page {
		keys[i] = o.Key.String()
		byKey[keys[i]] = o
	}
	unknown, err := r.queryKeys(ctx, sqlUnknownObjects, pq.Array(keys), id)
	if err != nil {
		return err
	}
	for _, key := range unknown {
		o := byKey[key.String()]
		r.found.Orphans++
		r.found.OrphanBytes += o.Size
		r.finding("%s: object without a row, %d bytes", o.Name, o.Size)
		if err := r.remove(ctx, store, o); err != nil {
			return err
		}
	}
	return nil
}

// removeUnowned finds the rows of objects that have no file.
func (r *reconciler) removeUnowned(ctx context.Context, id int, store *objectstore.Store) error {
	for after := uuid.Nil; ; {
		keys, err := r.queryKeys(ctx, sqlUnowned, id, minOrphanAge.Microseconds(), after, pageSize)
		if err != nil || len(keys) == 0 {
			return err
		}
		for _, key := range keys {
			r.found.Unowned++
			r.finding("%s: object without a file", key)
			if !r.fix {
				continue
			}
			if err := store.Delete(ctx, key); err != nil {
				return err
			}
			if _, err := r.db.ExecContext(ctx, sqlDeleteUnowned, key); err != nil {
				return fmt.Errorf("delete the row of object %s: %w", key, err)
			}
		}
		after = keys[len(keys)-1]
	}
}

func (r *reconciler) queryKeys(ctx context.Context, query string, args ...any) (keys []uuid.UUID, err error) {
	rows, err := r.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("compare objects with rows: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var key uuid.UUID
		if err := rows.Scan(&key); err != nil {
			return nil, fmt.Errorf("compare objects with rows: %w", err)
		}
		keys = append(keys, key)
	}
	return keys, rows.Err()
}

// objectFile is a file whose content is an object.
type objectFile struct {
	file, key uuid.UUID
	size      int64
	store     sql.NullInt64 // null: the object has no row
}

// What storedSize returns in place of a size.
const (
	sizeMissing = -1 // the object does not exist
	sizeUnknown = -2 // its store could not be read, which is an error already
)

// compareFiles checks that the content of every file exists and has the right size.
func (r *reconciler) compareFiles(ctx context.Context, stores map[int]*objectstore.Store) error {
	for after := uuid.Nil; ; {
		files, err := r.queryFiles(ctx, after)
		if err != nil {
			return fmt.Errorf("storageadmin: list files: %w", err)
		}
		if len(files) == 0 {
			break
		}
		after = files[len(files)-1].key
		r.found.Files += len(files)
		sizes := make([]int64, len(files))
		g, groupCtx := errgroup.WithContext(ctx)
		g.SetLimit(parallelChecks)
		for i, f := range files {
			g.Go(func() (err error) {
				sizes[i], err = storedSize(groupCtx, stores, f)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return fmt.Errorf("storageadmin: check objects: %w", err)
		}
		for i, f := range files {
			if sizes[i] == f.size || sizes[i] == sizeUnknown {
				continue
			}
			var still bool // false: swept or moved meanwhile
			if err := r.db.QueryRowContext(ctx, sqlStillOwned, f.file, f.key).Scan(&still); err != nil {
				return fmt.Errorf("storageadmin: check file %s: %w", f.file, err)
			}
			switch {
			case !still:
			case sizes[i] == sizeMissing:
				r.found.Missing++
				r.finding("file %s: its object %s is missing", f.file, f.key)
			default:
				r.found.WrongSize++
				r.finding("file %s: its object %s has %d bytes of %d", f.file, f.key, sizes[i], f.size)
			}
		}
	}
	var wrong int
	if err := r.db.QueryRowContext(ctx, sqlWrongSizeInDatabase).Scan(&wrong); err != nil {
		return fmt.Errorf("storageadmin: check files in the database: %w", err)
	}
	if wrong > 0 {
		r.finding("%d files in the database have content of another size", wrong)
	}
	r.found.WrongSize += wrong
	return nil
}

func storedSize(ctx context.Context, stores map[int]*objectstore.Store, f objectFile) (int64, error) {
	if !f.store.Valid {
		return sizeMissing, nil
	}
	store := stores[int(f.store.Int64)]
	if store == nil {
		return sizeUnknown, nil
	}
	n, err := store.Size(ctx, f.key)
	if errors.Is(err, fs.ErrNotExist) {
		return sizeMissing, nil
	}
	return n, err
}

func (r *reconciler) queryFiles(ctx context.Context, after uuid.UUID) (files []objectFile, err error) {
	rows, err := r.db.QueryContext(ctx, sqlOwned, after, pageSize)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var f objectFile
		if err := rows.Scan(&f.file, &f.key, &f.size, &f.store); err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, rows.Err()
}
