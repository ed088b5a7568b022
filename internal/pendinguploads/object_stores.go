package pendinguploads

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"golang.org/x/sync/singleflight"
)

// probedObjects is how many objects are looked for before a store is taken for the wrong one.
const probedObjects = 10

const (
	// The update changes nothing: it makes RETURNING return the row of a URL that is there already.
	sqlRegisterStore = `
INSERT INTO upload_stores (url) VALUES ($1)
ON CONFLICT (url) DO UPDATE SET url = excluded.url
RETURNING id`

	sqlFindStore = `SELECT url, namespace FROM upload_stores WHERE id = $1`

	sqlProbedObjects = `
SELECT array(
  SELECT object_key::text FROM upload_objects WHERE store_id = $1 AND garbage_at IS NULL ORDER BY object_key LIMIT $2
)`
)

// ErrWrongStore reports that the store of STORAGE_URL contains none of the objects that files have in
// it. Its text is for the operator: the platform does not start.
var ErrWrongStore = errors.New("the store of STORAGE_URL contains none of the files that were written to it; " +
	"check that it is mounted and that STORAGE_URL is right. If its content is lost for good, use another folder or prefix")

// ObjectStore is what an ObjectStorage needs of an object store; *objectstore.Store implements it. A
// missing object is fs.ErrNotExist, except for Delete.
type ObjectStore interface {
	// Write creates an object of size bytes, or replaces it. The object is durable when Write returns nil.
	Write(ctx context.Context, key uuid.UUID, size int64, content io.Reader) error

	// Read returns the content of an object from offset on, and the size of the whole object.
	Read(ctx context.Context, key uuid.UUID, offset int64) (io.ReadCloser, int64, error)

	// Delete deletes an object. Deleting a missing object succeeds.
	Delete(ctx context.Context, key uuid.UUID) error

	// SignedURL returns a URL to read the object from, "" if there is none.
	SignedURL(ctx context.Context, key uuid.UUID, validFor time.Duration) (string, error)

	Close() error
}

// ObjectStoreOpener opens the object store of a URL. All keys are relative to the namespace, so that
// several platforms can share a store.
type ObjectStoreOpener func(ctx context.Context, url string, namespace uuid.UUID) (ObjectStore, error)

// stores are all object stores that were ever configured, by their id in upload_stores.
type stores struct {
	db      *sql.DB
	open    ObjectStoreOpener
	opening singleflight.Group // by id

	mu     sync.Mutex
	opened map[int]ObjectStore
}

// register opens the store of url and returns its id. ErrWrongStore.
func (s *stores) register(ctx context.Context, url string) (int, error) {
	var id int
	if err := s.db.QueryRowContext(ctx, sqlRegisterStore, url).Scan(&id); err != nil {
		return 0, fmt.Errorf("pendinguploads: register object store: %w", err)
	}
	store, err := s.get(ctx, id)
	if err != nil {
		return 0, err
	}
	return id, s.probe(ctx, id, store)
}

// probe returns ErrWrongStore if the store contains none of the objects that files have in it, such as a
// folder that is not mounted. A file that is written to such a folder is hidden once it is mounted.
func (s *stores) probe(ctx context.Context, id int, store ObjectStore) error {
	for range 2 { // a sweep may delete the objects that the first attempt looks for
		var keys []string
		if err := s.db.QueryRowContext(ctx, sqlProbedObjects, id, probedObjects).Scan((*pq.StringArray)(&keys)); err != nil {
			return fmt.Errorf("pendinguploads: probe object store: %w", err)
		}
		if len(keys) == 0 {
			return nil
		}
		for _, key := range keys {
			body, _, err := store.Read(ctx, uuid.MustParse(key), 0)
			if err == nil {
				return body.Close()
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("pendinguploads: probe object store: %w", err)
			}
		}
	}
	return ErrWrongStore
}

// get returns a store and opens it at the first use. The wait for that ends with ctx, and a store that
// hangs while it is opened does not delay callers that need another one.
func (s *stores) get(ctx context.Context, id int) (ObjectStore, error) {
	s.mu.Lock()
	store := s.opened[id]
	s.mu.Unlock()
	if store != nil {
		return store, nil
	}
	opened := s.opening.DoChan(strconv.Itoa(id), func() (any, error) {
		return s.openStore(context.WithoutCancel(ctx), id) // it outlives the request that needs it first
	})
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("pendinguploads: open object store %d: %w", id, ctx.Err())
	case o := <-opened:
		if o.Err != nil {
			return nil, o.Err
		}
		return o.Val.(ObjectStore), nil
	}
}

// openStore opens a store. A race may open one twice; the last one is kept, and both work.
func (s *stores) openStore(ctx context.Context, id int) (ObjectStore, error) {
	var url string
	var namespace uuid.UUID
	if err := s.db.QueryRowContext(ctx, sqlFindStore, id).Scan(&url, &namespace); err != nil {
		return nil, fmt.Errorf("pendinguploads: find object store %d: %w", id, err)
	}
	store, err := s.open(ctx, url, namespace)
	if err != nil {
		return nil, fmt.Errorf("pendinguploads: open object store %d: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened[id] = store
	return store, nil
}

func (s *stores) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for id, store := range s.opened {
		errs = append(errs, store.Close())
		delete(s.opened, id)
	}
	return errors.Join(errs...)
}
