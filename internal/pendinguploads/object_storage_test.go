package pendinguploads_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/objectstore"
	"github.com/molecule-ai/platform/internal/objectstore/s3test"
	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/pendinguploads/storagetest"
)

// openStore opens real stores.
func openStore(ctx context.Context, url string, namespace uuid.UUID) (pendinguploads.ObjectStore, error) {
	return objectstore.Open(ctx, url, namespace)
}

// The suite that Postgres passes. Small files stay in the row and others do not, so both ways are covered.
// The faults that were planted are listed at the tests in object_*_test.go.
func TestObjectStorage_IsAStorage(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]func(*testing.T) string{
		"folder": func(t *testing.T) string { return "file://" + t.TempDir() },
		"S3":     func(t *testing.T) string { return s3test.BucketURL(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storagetest.Run(t, func(t *testing.T, limits pendinguploads.Limits) storagetest.Backend {
				return objectBackend(t, url(t), limits)
			})
		})
	}
}

func objectBackend(t *testing.T, url string, limits pendinguploads.Limits) storagetest.Backend {
	t.Helper()
	dsn := pgtest.New(t)
	db := openPool(t, connector(t, dsn, false))
	inbox, staging := activity.New(db), openPool(t, connector(t, dsn, true))
	open := func(limits pendinguploads.Limits) pendinguploads.Storage {
		return newObjectStorage(t, pendinguploads.NewPostgres(db, staging, inbox, limits), openStore, url)
	}
	return storagetest.Backend{
		Storage: open(limits),
		Open:    open,
		Age: func(ctx context.Context, id uuid.UUID, by time.Duration) error {
			_, err := db.ExecContext(ctx, sqlAge, id, by.Microseconds())
			return err
		},
		Expire: execute(db, sqlExpire),
		Delete: execute(db, sqlDelete),
		ExpireKey: func(ctx context.Context, workspace uuid.UUID, key string) error {
			_, err := db.ExecContext(ctx, sqlExpireKey, workspace, key)
			return err
		},
		Inbox: func(ctx context.Context, workspace uuid.UUID) ([]activity.Row, error) {
			return inbox.Read(ctx, workspace, activity.Query{Oldest: true, Limit: activity.MaxLimit})
		},
	}
}

const inlineBytes = 64 << 10

func newObjectStorage(t *testing.T, postgres *pendinguploads.Postgres, open pendinguploads.ObjectStoreOpener, url string) *pendinguploads.ObjectStorage {
	t.Helper()
	b, err := pendinguploads.NewObjectStorage(t.Context(), postgres, open, pendinguploads.ObjectStorageOptions{URL: url, InlineBytes: inlineBytes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}
