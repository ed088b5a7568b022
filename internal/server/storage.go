package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/metrics"
	"github.com/molecule-ai/platform/internal/objectstore"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// probeTimeout is how long the store may take to write a few bytes when the platform starts.
const probeTimeout = 30 * time.Second

// openStorage opens the files in the database, and the stores beside it.
func (s *Server) openStorage(ctx context.Context, inbox *activity.Inbox) (_ pendinguploads.Storage, err error) {
	c := s.config
	postgres := pendinguploads.NewPostgres(s.db, s.pools.FileWrites, inbox, pendinguploads.Limits{
		MaxFileBytes: c.MaxFileBytes, MaxBatchBytes: c.MaxRequestBytes, TTL: c.PendingTTL,
		QuotaBytes: c.QuotaBytes, QuotaFiles: int64(c.QuotaFiles),
	})
	postgres.UseSessionPool(s.pools.Sessions)
	open := func(ctx context.Context, url string, namespace uuid.UUID) (pendinguploads.ObjectStore, error) {
		store, err := objectstore.Open(ctx, url, namespace)
		if err != nil {
			return nil, err
		}
		if url != s.config.StorageURL {
			return measured{store, s.metrics}, nil
		}
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		if err := store.Probe(ctx); err != nil {
			return nil, errors.Join(err, store.Close())
		}
		return measured{store, s.metrics}, nil
	}
	s.bucket, err = pendinguploads.NewObjectStorage(ctx, postgres, open, pendinguploads.ObjectStorageOptions{
		URL: s.config.StorageURL, InlineBytes: s.config.StorageInlineBytes,
	})
	if errors.Is(err, pendinguploads.ErrWrongStore) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("the store of STORAGE_URL cannot be used: %w", err)
	}
	return s.tracing.Storage(s.bucket), nil
}

// measured is a store whose operations are counted and timed.
type measured struct {
	store   *objectstore.Store
	metrics *metrics.Platform
}

func (m measured) Write(ctx context.Context, key uuid.UUID, size int64, content io.Reader) error {
	return m.time("write", func() error { return m.store.Write(ctx, key, size, content) })
}

func (m measured) Read(ctx context.Context, key uuid.UUID, offset int64) (body io.ReadCloser, size int64, err error) {
	err = m.time("read", func() (err error) {
		body, size, err = m.store.Read(ctx, key, offset)
		return err
	})
	return body, size, err
}

func (m measured) Delete(ctx context.Context, key uuid.UUID) error {
	return m.time("delete", func() error { return m.store.Delete(ctx, key) })
}

func (m measured) SignedURL(ctx context.Context, key uuid.UUID, validFor time.Duration) (link string, err error) {
	err = m.time("sign", func() (err error) {
		link, err = m.store.SignedURL(ctx, key, validFor)
		return err
	})
	return link, err
}

func (m measured) Close() error { return m.store.Close() }

func (m measured) time(operation string, do func() error) error {
	start := time.Now()
	err := do()
	m.metrics.Object(operation, time.Since(start), err)
	return err
}
