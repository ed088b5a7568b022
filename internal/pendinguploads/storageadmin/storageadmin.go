// Package storageadmin looks after the stores of objects for an operator: it compares them with the
// database, and moves files to where the configuration says.
//
// It promises to delete nothing that a file has, and nothing that is young enough to be on its way.
// Both may run beside any number of platforms.
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
	// young is how old something must be that has no owner, to be nobody's. A row is always older than
	// its object, so an hour is for clocks that differ.
	young = time.Hour

	page   = 500
	looks  = 8 // objects looked at at once
	listed = 20
)

const (
	sqlStores = `SELECT id, url, namespace FROM upload_stores ORDER BY id`

	sqlUnknown = `SELECT k FROM unnest($1::uuid[]) AS k WHERE NOT EXISTS (SELECT FROM upload_objects WHERE object_key = k AND store_id = $2) ` +
		`AND NOT EXISTS (SELECT FROM pending_uploads WHERE object_key = k)`

	// Left by whoever deleted files without the trigger, or by an upload that nobody has swept yet.
	sqlUnowned = `SELECT o.object_key FROM upload_objects o WHERE o.store_id = $1 AND o.created_at < now() - $2 * interval '1 microsecond' ` +
		`AND NOT EXISTS (SELECT FROM pending_uploads p WHERE p.object_key = o.object_key) AND (o.garbage_at IS NULL OR o.garbage_at <= now()) ` +
		`AND o.object_key > $3 ORDER BY o.object_key LIMIT $4`

	sqlForget = `DELETE FROM upload_objects o WHERE object_key = $1 AND NOT EXISTS (SELECT FROM pending_uploads p WHERE p.object_key = o.object_key)`

	sqlOwned = `SELECT p.file_id, p.object_key, p.size_bytes, o.store_id FROM pending_uploads p LEFT JOIN upload_objects o USING (object_key) ` +
		`WHERE p.object_key > $1 ORDER BY p.object_key LIMIT $2`

	sqlStillOwned = `SELECT EXISTS (SELECT FROM pending_uploads WHERE file_id = $1 AND object_key = $2)`

	sqlShort = `SELECT count(*) FROM pending_uploads p WHERE object_key IS NULL AND size_bytes <> octet_length(content) + ` +
		`coalesce((SELECT sum(octet_length(data)) FROM pending_upload_chunks c WHERE c.file_id = p.file_id), 0)`
)

// ErrBroken: there are files without their bytes.
var ErrBroken = errors.New("there are files whose bytes are not all there; they stay as they are")

// Found is what Reconcile found.
type Found struct {
	Objects     int   // in the stores
	Orphans     int   // objects that no row knows of
	OrphanBytes int64 // of them
	Partial     int   // what writes to a folder left that were cut short
	Unfinished  int   // uploads of large objects that were never finished
	Unowned     int   // rows of objects that have no file
	Strangers   int   // below the namespace, but not by a name that the platform gives: left alone
	Files       int   // whose bytes are in a store
	Missing     int   // files whose object is not there
	Wrong       int   // files whose bytes are of another length
}

// A reconciler compares stores with the database.
type reconciler struct {
	db    *sql.DB
	fix   bool
	tell  func(format string, args ...any)
	found Found
	told  int
}

// Reconcile looks for what belongs to nobody, and deletes it if fix is set; and for files without
// their bytes, about which it does nothing: then the error is ErrBroken. tell is told what it finds, a
// line each, until there are many. A store that cannot be read is an error, after the others.
func Reconcile(ctx context.Context, db *sql.DB, fix bool, tell func(format string, args ...any)) (Found, error) {
	r := &reconciler{db: db, fix: fix, tell: tell}
	rows, err := db.QueryContext(ctx, sqlStores)
	if err != nil {
		return r.found, fmt.Errorf("upkeep: list stores: %w", err)
	}
	defer rows.Close()
	type known struct {
		id        int
		url       string
		namespace uuid.UUID
	}
	var stores []known
	for rows.Next() {
		var s known
		if err := rows.Scan(&s.id, &s.url, &s.namespace); err != nil {
			return r.found, fmt.Errorf("upkeep: list stores: %w", err)
		}
		stores = append(stores, s)
	}
	if err := rows.Err(); err != nil {
		return r.found, fmt.Errorf("upkeep: list stores: %w", err)
	}
	var errs []error
	opened := map[int]*objectstore.Store{}
	for _, s := range stores {
		store, err := objectstore.Open(ctx, s.url, s.namespace)
		if err == nil {
			defer store.Close() //nolint:errcheck // only read, or what counts was answered
			opened[s.id] = store
			err = r.store(ctx, s.id, store)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("upkeep: %s: %w", s.url, err))
			delete(opened, s.id)
		}
	}
	if err := r.files(ctx, opened); err != nil {
		errs = append(errs, err)
	}
	if r.found.Missing+r.found.Wrong > 0 {
		errs = append(errs, ErrBroken)
	}
	return r.found, errors.Join(errs...)
}

// note tells of one thing that was found.
func (r *reconciler) note(format string, args ...any) {
	if r.told++; r.told <= listed {
		r.tell(format, args...)
	} else if r.told == listed+1 {
		r.tell("... and more; the summary counts them")
	}
}

// store looks for what is in a store and belongs to nobody.
func (r *reconciler) store(ctx context.Context, id int, store *objectstore.Store) error {
	before := time.Now().Add(-young)
	var candidates []objectstore.Object
	err := store.List(ctx, func(o objectstore.Object) error {
		r.found.Objects++
		switch {
		case o.Key == uuid.Nil:
			r.found.Strangers++
			r.note("%s: not a name that the platform gives; left alone", o.Name)
			return nil
		case o.Modified.After(before):
			return nil
		case o.Partial:
			r.found.Partial++
			r.note("%s: what a write left that was cut short, %d bytes", o.Name, o.Size)
			return r.remove(ctx, store, o)
		}
		if candidates = append(candidates, o); len(candidates) < page {
			return nil
		}
		err := r.orphans(ctx, id, store, candidates)
		candidates = candidates[:0]
		return err
	})
	if err != nil {
		return err
	}
	if err := r.orphans(ctx, id, store, candidates); err != nil {
		return err
	}
	if err := store.Unfinished(ctx, before, func(name string, abort func() error) error {
		r.found.Unfinished++
		r.note("%s: an upload of a large object that was never finished", name)
		if !r.fix {
			return nil
		}
		return abort()
	}); err != nil {
		return err
	}
	return r.unowned(ctx, id, store)
}

func (r *reconciler) remove(ctx context.Context, store *objectstore.Store, o objectstore.Object) error {
	if !r.fix {
		return nil
	}
	return store.Remove(ctx, o.Name)
}

// orphans deals with those of a page of objects that no row knows of.
func (r *reconciler) orphans(ctx context.Context, id int, store *objectstore.Store, candidates []objectstore.Object) error {
	byKey := map[string]objectstore.Object{}
	keys := make([]string, len(candidates))
	for i, o := range candidates {
		keys[i] = o.Key.String()
		byKey[keys[i]] = o
	}
	unknown, err := r.keys(ctx, sqlUnknown, pq.Array(keys), id)
	if err != nil {
		return err
	}
	for _, key := range unknown {
		o := byKey[key.String()]
		r.found.Orphans++
		r.found.OrphanBytes += o.Size
		r.note("%s: an object that no row knows of, %d bytes", o.Name, o.Size)
		if err := r.remove(ctx, store, o); err != nil {
			return err
		}
	}
	return nil
}

// unowned deals with rows of objects that have no file.
func (r *reconciler) unowned(ctx context.Context, id int, store *objectstore.Store) error {
	for after := uuid.Nil; ; {
		keys, err := r.keys(ctx, sqlUnowned, id, young.Microseconds(), after, page)
		if err != nil || len(keys) == 0 {
			return err
		}
		for _, key := range keys {
			r.found.Unowned++
			r.note("%s: an object without a file", key)
			if !r.fix {
				continue
			}
			if err := store.Delete(ctx, key); err != nil {
				return err
			}
			if _, err := r.db.ExecContext(ctx, sqlForget, key); err != nil {
				return fmt.Errorf("forget object %s: %w", key, err)
			}
		}
		after = keys[len(keys)-1]
	}
}

func (r *reconciler) keys(ctx context.Context, query string, args ...any) (keys []uuid.UUID, err error) {
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

// owned is a file that has an object.
type owned struct {
	file, key uuid.UUID
	size      int64
	store     sql.NullInt64
}

// files looks whether the bytes of files are there. Those in stores that could not be read are
// passed over: that is an error already.
func (r *reconciler) files(ctx context.Context, stores map[int]*objectstore.Store) error {
	for after := uuid.Nil; ; {
		files, err := r.owned(ctx, after)
		if err != nil {
			return fmt.Errorf("upkeep: list files: %w", err)
		}
		if len(files) == 0 {
			break
		}
		after = files[len(files)-1].key
		r.found.Files += len(files)
		sizes := make([]int64, len(files)) // -1: missing, -2: not known
		g, looking := errgroup.WithContext(ctx)
		g.SetLimit(looks)
		for i, f := range files {
			g.Go(func() (err error) {
				sizes[i], err = size(looking, stores, f)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return fmt.Errorf("upkeep: look at objects: %w", err)
		}
		for i, f := range files {
			if sizes[i] == f.size || sizes[i] == -2 {
				continue
			}
			var still bool // or is it swept, or moved, by now?
			if err := r.db.QueryRowContext(ctx, sqlStillOwned, f.file, f.key).Scan(&still); err != nil {
				return fmt.Errorf("upkeep: look at file %s: %w", f.file, err)
			}
			switch {
			case !still:
			case sizes[i] == -1:
				r.found.Missing++
				r.note("file %s: its object %s is not there", f.file, f.key)
			default:
				r.found.Wrong++
				r.note("file %s: its object %s has %d bytes of %d", f.file, f.key, sizes[i], f.size)
			}
		}
	}
	var short int
	if err := r.db.QueryRowContext(ctx, sqlShort).Scan(&short); err != nil {
		return fmt.Errorf("upkeep: look at files in the database: %w", err)
	}
	if short > 0 {
		r.note("%d files in the database are not as long as they say", short)
	}
	r.found.Wrong += short
	return nil
}

func size(ctx context.Context, stores map[int]*objectstore.Store, f owned) (int64, error) {
	if !f.store.Valid {
		return -1, nil
	}
	store := stores[int(f.store.Int64)]
	if store == nil {
		return -2, nil
	}
	n, err := store.Size(ctx, f.key)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	}
	return n, err
}

func (r *reconciler) owned(ctx context.Context, after uuid.UUID) (files []owned, err error) {
	rows, err := r.db.QueryContext(ctx, sqlOwned, after, page)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var f owned
		if err := rows.Scan(&f.file, &f.key, &f.size, &f.store); err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, rows.Err()
}
