package server

import (
	"log/slog"
	"time"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/events"
	"github.com/molecule-ai/platform/internal/sweeper"
)

func newSweeper(
	files sweeper.Files, inbox sweeper.Inbox, old sweeper.Events, c config.Config, log *slog.Logger,
	observe func(sweeper.Result, time.Duration, error),
) *sweeper.Sweeper {
	return sweeper.New(files, inbox, old, sweeper.Retention{
		Acked: c.AckRetention, Rows: c.ActivityRetention, Unread: sweeper.UnreadRetention, Events: events.Retention, Interval: c.SweepInterval,
	}, log, observe)
}
