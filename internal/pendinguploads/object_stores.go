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

// witnesses is how many objects have to be missing for a store to be taken for another one.
const witnesses = 10

const (
	// An update that changes nothing: so the row comes back in either case.
	sqlStore = `INSERT INTO upload_stores (url) VALUES ($1) ON CONFLICT (url) DO UPDATE SET url = excluded.url RETURNING id`

	sqlFindStore = `SELECT url, namespace FROM upload_stores WHERE id = $1`

	sqlWitnesses = `SELECT array(SELECT object_key::text FROM upload_objects WHERE store_id = $1 AND garbage_at IS NULL ORDER BY object_key LIMIT $2)`
)

// ErrWrongStore: a store has not one of the objects that files have in it. It is a sentence for a person.
var ErrWrongStore = errors.New("the store of STORAGE_URL has nothing of what was put there; is it mounted, and is it the one it was? " +
	"If all of that is lost for good, use another folder or prefix")

// ObjectStore is a store of objects; *objects.Store is one. A missing object is fs.ErrNotExist, but for
// Delete, to which it is deleted already.
type ObjectStore interface {
	// Write makes an object, durable when it returns nil.
	Write(ctx context.Context, key uuid.UUID, size int64, content io.Reader) error
	// Read reads an object from offset on, and tells the length of all of it.
	Read(ctx context.Context, key uuid.UUID, offset int64) (io.ReadCloser, int64, error)
	Delete(ctx context.Context, key uuid.UUID) error
	// SignedURL returns a URL to read the object from, "" if there is none.
	SignedURL(ctx context.Context, key uuid.UUID, validFor time.Duration) (string, error)
	Close() error
}

// ObjectStoreOpener opens the store that a URL names, for the objects below a namespace.
type ObjectStoreOpener func(ctx context.Context, url string, namespace uuid.UUID) (ObjectStore, error)

// stores are those that files were ever put in, by the number that their rows have.
type stores struct {
	db      *sql.DB
	open    ObjectStoreOpener
	opening singleflight.Group // by the number

	mu     sync.Mutex
	opened map[int]ObjectStore
}

// register returns the number of the store that url names, which is opened. ErrWrongStore.
func (s *stores) register(ctx context.Context, url string) (int, error) {
	var id int
	if err := s.db.QueryRowContext(ctx, sqlStore, url).Scan(&id); err != nil {
		return 0, fmt.Errorf("pendinguploads: register the store: %w", err)
	}
	store, err := s.get(ctx, id)
	if err != nil {
		return 0, err
	}
	return id, s.recognize(ctx, id, store)
}

// recognize returns ErrWrongStore for a store that has nothing of what files have in it, such as a folder
// that is not mounted: what is written there would be out of reach once it is.
func (s *stores) recognize(ctx context.Context, id int, store ObjectStore) error {
	for range 2 { // a sweep may delete what the first look finds named
		var keys []string
		if err := s.db.QueryRowContext(ctx, sqlWitnesses, id, witnesses).Scan((*pq.StringArray)(&keys)); err != nil {
			return fmt.Errorf("pendinguploads: recognize the store: %w", err)
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
				return fmt.Errorf("pendinguploads: recognize the store: %w", err)
			}
		}
	}
	return ErrWrongStore
}

// get returns a store, which is opened when it is first asked for. Whoever asks waits for that no
// longer than ctx, and nobody for another store: one that hangs is nobody else's matter.
func (s *stores) get(ctx context.Context, id int) (ObjectStore, error) {
	s.mu.Lock()
	store := s.opened[id]
	s.mu.Unlock()
	if store != nil {
		return store, nil
	}
	opened := s.opening.DoChan(strconv.Itoa(id), func() (any, error) {
		return s.find(context.WithoutCancel(ctx), id) // it outlives the request that first asks for it
	})
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("pendinguploads: open store %d: %w", id, ctx.Err())
	case o := <-opened:
		if o.Err != nil {
			return nil, o.Err
		}
		return o.Val.(ObjectStore), nil
	}
}

// find opens a store. It may come to pass that it is opened twice; the last one stays, and either is good.
func (s *stores) find(ctx context.Context, id int) (ObjectStore, error) {
	var url string
	var namespace uuid.UUID
	if err := s.db.QueryRowContext(ctx, sqlFindStore, id).Scan(&url, &namespace); err != nil {
		return nil, fmt.Errorf("pendinguploads: find store %d: %w", id, err)
	}
	store, err := s.open(ctx, url, namespace)
	if err != nil {
		return nil, fmt.Errorf("pendinguploads: open store %d: %w", id, err)
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
