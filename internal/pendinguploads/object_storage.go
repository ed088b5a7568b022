package pendinguploads

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/fairshare"
)

// ObjectStorageOptions select the files whose content goes to an object store.
type ObjectStorageOptions struct {
	URL         string // the object store for new files; "": the database
	InlineBytes int64  // files of at most this size go to the database in any case
}

// ObjectStorage is a Storage that keeps the content of larger files in object stores, and everything
// else in the database. Each row records where its content is, so the configured store matters to new
// files only, and files in stores that were configured before can still be read.
//
// Staging is crash-safe by its order: first a row for each object, in a transaction of its own; then
// the objects; then one transaction with the rows of the files, their claims on the objects and the
// inbox rows. A crash leaves an object that has a row and no file, which the sweep deletes. It never
// leaves a visible file without content.
//
// It does not embed *Postgres. A method that is added to Storage must be written here too, which is
// the moment to decide what it means for content outside the database.
type ObjectStorage struct {
	postgres          *Postgres // rows, inbox, quotas, keys and small files
	stores            *stores
	options           ObjectStorageOptions
	store             int // id of the object store for new files; 0: the database
	objectWrites      *fairshare.Budget
	keyedUploads      *fairshare.Budget
	keepaliveInterval time.Duration
	stallTimeout      time.Duration
}

var _ Storage = (*ObjectStorage)(nil)

// NewObjectStorage returns a Storage on postgres and on the object stores that open opens. Close it
// when it is not used any more. It returns ErrWrongStore if the store for new files contains none of
// the objects that it should contain.
func NewObjectStorage(ctx context.Context, postgres *Postgres, open ObjectStoreOpener, options ObjectStorageOptions) (*ObjectStorage, error) {
	s := &ObjectStorage{
		postgres: postgres, stores: &stores{db: postgres.db, open: open, opened: map[int]ObjectStore{}}, options: options,
		objectWrites: fairshare.New(maxObjectWrites), keyedUploads: fairshare.New(maxKeyedUploads),
		keepaliveInterval: keepaliveInterval, stallTimeout: stallTimeout,
	}
	if options.URL == "" {
		return s, nil
	}
	var err error
	if s.store, err = s.stores.register(ctx, options.URL); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close closes the object stores. It does not close the connection pools.
func (s *ObjectStorage) Close() error { return s.stores.close() }

// MarkFetched implements Storage. It concerns the row only.
func (s *ObjectStorage) MarkFetched(ctx context.Context, workspace, id uuid.UUID) (bool, error) {
	return s.postgres.MarkFetched(ctx, workspace, id)
}

// Ack implements Storage. It concerns the row only; the sweep deletes the object with it.
func (s *ObjectStorage) Ack(ctx context.Context, workspace, id uuid.UUID) (File, bool, error) {
	return s.postgres.Ack(ctx, workspace, id)
}

// Get implements Storage. It concerns the row only.
func (s *ObjectStorage) Get(ctx context.Context, workspace, id uuid.UUID) (File, error) {
	return s.postgres.Get(ctx, workspace, id)
}

// List implements Storage. It concerns the rows only.
func (s *ObjectStorage) List(ctx context.Context, workspace uuid.UUID, q ListQuery) ([]File, error) {
	return s.postgres.List(ctx, workspace, q)
}

// Sweepable implements Storage. It counts files, and each file has its row.
func (s *ObjectStorage) Sweepable(ctx context.Context, retention time.Duration) (Swept, error) {
	return s.postgres.Sweepable(ctx, retention)
}

// Reclaim implements Storage. Object stores reclaim their space by themselves; the database does not.
func (s *ObjectStorage) Reclaim(ctx context.Context) error { return s.postgres.Reclaim(ctx) }
