package server

import (
	"context"
	"database/sql"
	"log/slog"
	"time"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/events"
	"github.com/molecule-ai/platform/internal/sweeper"
)

// unreadRetention is how long an inbox row stays that its workspace never came for.
const unreadRetention = 30 * 24 * time.Hour

// NewSweeper returns a sweeper of what is in db and in its stores, for a command that sweeps and does
// not serve.
func NewSweeper(ctx context.Context, db *sql.DB, c config.Config) (*sweeper.Sweeper, error) {
	if err := HasStores(ctx, db); err != nil {
		return nil, err
	}
	bucket, err := NewBucket(ctx, db, config.Config{})
	if err != nil {
		return nil, err
	}
	inbox := activity.New(db)
	return newSweeper(bucket, inbox, events.New(db, inbox), c, slog.New(slog.DiscardHandler), nil), nil
}

func newSweeper(
	files sweeper.Files, inbox sweeper.Inbox, receipts sweeper.Events, c config.Config, log *slog.Logger,
	observe func(sweeper.Result, time.Duration, error),
) *sweeper.Sweeper {
	return sweeper.New(files, inbox, receipts, sweeper.Retention{
		Acked: c.AckRetention, Rows: c.ActivityRetention, Unread: unreadRetention, Events: events.Retention, Interval: c.SweepInterval,
	}, log, observe)
}
