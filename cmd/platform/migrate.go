package main

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/database"
	"github.com/molecule-ai/platform/internal/embeddedpg"
	"github.com/molecule-ai/platform/internal/schema"
)

type migrateCmd struct {
	Up     migrateUpCmd     `cmd:"" help:"Apply all pending migrations."`
	Down   migrateDownCmd   `cmd:"" help:"Undo the last N migrations. The data in the tables they created is lost."`
	Status migrateStatusCmd `cmd:"" help:"Show which migrations are applied, and what to do if one failed."`
	Force  migrateForceCmd  `cmd:"" help:"Record a version as applied without running any migration, to repair the record after another tool failed."`
}

type migrateUpCmd struct{}

// Run applies what is pending.
func (migrateUpCmd) Run(env *environment, settings *config.Settings) error {
	return withDatabase(env, settings, func(db *sql.DB) error {
		applied, err := schema.Up(env.ctx, db, lockProgress(env))
		for _, m := range applied {
			fmt.Fprintln(env.stdout, "applied", m)
		}
		if err == nil && len(applied) == 0 {
			fmt.Fprintln(env.stdout, "nothing to apply: the schema is up to date")
		}
		return err
	})
}

// lockProgress says on stderr what a migration waits for.
func lockProgress(env *environment) schema.Option {
	return schema.Progress(func(sentence string) { fmt.Fprintln(env.stderr, sentence) })
}

type migrateDownCmd struct {
	N int `arg:"" optional:"" default:"1" help:"Number of migrations to undo; 20260505100000 and 20260701100000 are undone together and count as one."`
}

// Run undoes the last migrations.
func (m migrateDownCmd) Run(env *environment, settings *config.Settings) error {
	return withDatabase(env, settings, func(db *sql.DB) error {
		undone, err := schema.Down(env.ctx, db, m.N, lockProgress(env))
		for _, m := range undone {
			fmt.Fprintln(env.stdout, "undone", m)
		}
		return err
	})
}

type migrateStatusCmd struct{}

// Run reports where the schema is.
func (migrateStatusCmd) Run(env *environment, settings *config.Settings) error {
	return withDatabase(env, settings, func(db *sql.DB) error {
		status, err := schema.Read(env.ctx, db)
		if err != nil {
			return err
		}
		fmt.Fprint(env.stdout, status.Report())
		return nil
	})
}

type migrateForceCmd struct {
	Version uint `arg:"" help:"Version that the schema actually has; 0 for none."`
}

// Run records a version.
func (m migrateForceCmd) Run(env *environment, settings *config.Settings) error {
	return withDatabase(env, settings, func(db *sql.DB) error {
		return schema.Force(env.ctx, db, m.Version)
	})
}

// withDatabase runs do on the operator's database, or on the private one, which is started for
// it.
func withDatabase(env *environment, settings *config.Settings, do func(*sql.DB) error) (err error) {
	dsn, dataDir, err := settings.LoadDatabase()
	if err != nil {
		return fmt.Errorf("%w:\n%w", errConfig, err)
	}
	if dsn == "" {
		fmt.Fprintf(env.stderr, "DATABASE_URL is empty: using the private PostgreSQL in %s\n", dataDir)
		postgres, err := embeddedpg.Start(env.ctx, embeddedpg.Options{DataDir: dataDir})
		if err != nil {
			return err
		}
		defer postgres.Stop(context.WithoutCancel(env.ctx)) // what counts has been committed
		dsn = postgres.DSN(embeddedpg.DefaultDatabase)
	}
	db, err := database.OpenCommand(env.ctx, dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	return do(db)
}
