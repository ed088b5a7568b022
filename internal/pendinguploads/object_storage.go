package pendinguploads

import (
	"context"
	"errors"
	"time"

	"github.com/molecule-ai/platform/internal/fairshare"
)

// ObjectStorageOptions say which bytes go to a store of objects.
type ObjectStorageOptions struct {
	URL         string // the store for new files; "": they go to the database
	InlineBytes int64  // files no longer than this go to the database in any case
}

// ObjectStorage is a Storage that keeps the bytes of files in stores of objects, and all else, with the
// bytes of small files, in the database. Each row says where its bytes are, so that which store is
// configured only matters to new files.
//
// The order is what makes it safe: a row that an object is intended, then the object, then one
// transaction that gives it its file, and that announces. A crash leaves an object that the first row
// knows of and the sweep deletes, never a visible file without bytes.
type ObjectStorage struct {
	*Postgres
	stores  *stores
	options ObjectStorageOptions
	store   int // for new files
	writes  *fairshare.Budget
	keyed   *fairshare.Budget
	alive   time.Duration
	stall   time.Duration
}

// NewObjectStorage returns a Storage on postgres and on the stores that open opens. The schema must have
// objects. ErrWrongStore, if the store for new files is not the one that it was.
func NewObjectStorage(ctx context.Context, postgres *Postgres, open ObjectStoreOpener, options ObjectStorageOptions) (*ObjectStorage, error) {
	b := &ObjectStorage{
		Postgres: postgres, stores: &stores{db: postgres.db, open: open, opened: map[int]ObjectStore{}}, options: options,
		writes: fairshare.New(maxWrites), keyed: fairshare.New(maxKeyed), alive: aliveInterval, stall: stallTimeout,
	}
	if options.URL == "" {
		return b, nil
	}
	var err error
	if b.store, err = b.stores.register(ctx, options.URL); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// Close closes the stores. The pools are their owner's.
func (b *ObjectStorage) Close() error { return b.stores.close() }
