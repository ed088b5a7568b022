package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/metrics"
	"github.com/molecule-ai/platform/internal/objectstore"
	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/schema"
)

// probeTimeout is how long the store may take to write a few bytes when the platform starts.
const probeTimeout = 30 * time.Second

var errNoObjects = errors.New("STORAGE_URL is set, but the database is not up to date; run 'platform migrate up' with the same DATABASE_URL first")

// openStorage puts the stores of objects beside postgres, if the schema has them.
func (s *Server) openStorage(ctx context.Context, postgres *pendinguploads.Postgres) (pendinguploads.Storage, error) {
	have, err := schema.Objects(ctx, s.db)
	if err != nil {
		return nil, err
	}
	if !have && s.config.StorageURL != "" {
		return nil, errNoObjects
	}
	if !have {
		return s.tracing.Storage(postgres), nil
	}
	open := func(ctx context.Context, url string, namespace uuid.UUID) (pendinguploads.Objects, error) {
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
	s.bucket, err = pendinguploads.NewBucket(ctx, postgres, open, pendinguploads.BucketOptions{
		URL: s.config.StorageURL, InlineBytes: s.config.StorageInlineBytes,
	})
	if errors.Is(err, pendinguploads.ErrEmptied) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("the store of STORAGE_URL cannot be used: %w; it must be there, and these credentials must be allowed to write, read and delete in it", err)
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

func (m measured) Sign(ctx context.Context, key uuid.UUID, validFor time.Duration) (link string, err error) {
	err = m.time("sign", func() (err error) {
		link, err = m.store.Sign(ctx, key, validFor)
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
