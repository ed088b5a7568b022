package main

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/events"
	"github.com/molecule-ai/platform/internal/objectstore"
	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/schema"
	"github.com/molecule-ai/platform/internal/sweeper"
	"github.com/molecule-ai/platform/internal/workspaces"
)

// requireCurrentSchema returns a sentence for the operator unless the schema is up to date.
func requireCurrentSchema(ctx context.Context, db *sql.DB) error {
	status, err := schema.Read(ctx, db)
	if err != nil {
		return err
	}
	current, err := status.Staging()
	if err == nil && !current {
		err = errors.New("the database is not up to date; run 'platform migrate up' first")
	}
	return err
}

// openObjectStorage returns the files in db and in their object stores, without quotas. The schema must be current.
func openObjectStorage(ctx context.Context, db *sql.DB, c config.Config) (*pendinguploads.ObjectStorage, error) {
	if err := requireCurrentSchema(ctx, db); err != nil {
		return nil, err
	}
	open := func(ctx context.Context, url string, namespace uuid.UUID) (pendinguploads.ObjectStore, error) {
		return objectstore.Open(ctx, url, namespace)
	}
	files := pendinguploads.NewPostgres(db, db, activity.New(db), pendinguploads.Limits{})
	return pendinguploads.NewObjectStorage(ctx, files, open, pendinguploads.ObjectStorageOptions{URL: c.StorageURL, InlineBytes: c.StorageInlineBytes})
}

// newSweeper returns a sweeper of files, which are in db and its object stores, and of the inbox rows in db.
func newSweeper(db *sql.DB, files sweeper.Files, c config.Config) *sweeper.Sweeper {
	inbox := activity.New(db)
	return sweeper.New(files, inbox, events.NewPruner(events.New(db, inbox)), sweeper.Retention{
		Acked: c.AckRetention, Rows: c.ActivityRetention, Unread: sweeper.UnreadRetention, Events: events.Retention,
	}, slog.New(slog.DiscardHandler), nil).WithIdentities(workspaces.New(db, nil, nil)) // sweeping needs neither tokens nor URLs
}
