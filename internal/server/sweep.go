package server

import (
	"log/slog"
	"time"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/sweeper"
)

func newSweeper(
	files sweeper.Files, inbox sweeper.Inbox, c config.Config, log *slog.Logger, observe func(sweeper.Result, time.Duration, error),
) *sweeper.Sweeper {
	return sweeper.New(files, inbox, sweeper.Retention{
		Acked: c.AckRetention, Rows: c.ActivityRetention, Unread: sweeper.UnreadRetention, Interval: c.SweepInterval,
	}, log, observe)
}
