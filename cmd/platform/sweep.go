package main

import (
	"database/sql"
	"fmt"

	"github.com/dustin/go-humanize"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/sweeper"
)

type sweepCmd struct {
	DryRun bool `xor:"what" help:"Only report what would be deleted."`
	Once   bool `xor:"what" help:"Delete once and exit; this is the default."`
}

// Run sweeps once with the configured retention.
func (s sweepCmd) Run(env *environment, settings *config.Settings) error {
	c, err := settings.LoadRetention()
	if err != nil {
		return fmt.Errorf("%w:\n%w", errConfig, err)
	}
	return withDatabase(env, settings, func(db *sql.DB) error {
		storage, err := openObjectStorage(env.ctx, db, config.Config{})
		if err != nil {
			return err
		}
		defer storage.Close() // everything is committed
		sweep := newSweeper(db, storage, c)
		if s.DryRun {
			due, err := sweep.Due(env.ctx)
			if err == nil {
				fmt.Fprintln(env.stdout, "would delete", describeSweep(due))
			}
			return err
		}
		done, err := sweep.RunOnce(env.ctx)
		fmt.Fprintln(env.stdout, "deleted", describeSweep(done))
		return err
	})
}

func describeSweep(r sweeper.Result) string {
	return fmt.Sprintf("files: %d acknowledged (%s), %d expired (%s); inbox rows: %d; identities: %d",
		r.Acked, humanize.IBytes(uint64(r.AckedBytes)), r.Expired, humanize.IBytes(uint64(r.ExpiredBytes)), r.Rows, r.Identities)
}
