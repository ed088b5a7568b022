// Package schema brings a database to the version that this binary's migrations describe,
// and reports which version a database has and whether this binary can serve on it.
//
// It promises that several replicas may call Up at once: one applies, the others wait for
// it and go on. It promises that a migration is applied together with the record of it,
// or not at all, so one that failed or was killed has left nothing behind and the next Up
// or Down simply goes on. And Read changes nothing, on any database.
//
// The version table and the lock are golang-migrate's, so its command line understands the database and
// waits its turn; a step is run here, because golang-migrate records it in a transaction of its own.
//
// A platform serves on its newest schema, on base (the one before staging), and on a newer
// platform's, unless a migration that it does not know says in its first line that it breaks
// older platforms ("-- Breaks older platforms"). That is recorded in the database, where the older
// platform finds it.
//
// It holds only for migrations that leave BEGIN and COMMIT to it, and for a connection that
// keeps its session: a pooler that hands out one session per transaction loses the lock. It
// does not decide when to migrate, and it does not repair what another tool left half done:
// it refuses, and the error says what to do.
package schema

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Errors that Up, Down and Force return, each wrapped in a sentence that names the version.
var (
	// ErrUnknownVersion means that no migration of this binary has that version; as a
	// rule a newer one has been here.
	ErrUnknownVersion = errors.New("schema: unknown version")
	// ErrDirty means that another tool left the database marked dirty, so only an
	// operator can say whether its last migration is there in whole, in part or not.
	ErrDirty = errors.New("schema: database is dirty")
	// ErrNothingApplied means that there is no migration to undo.
	ErrNothingApplied = errors.New("schema: no migration is applied, so there is nothing to undo")
)

// Up applies every migration that is pending and returns those that this call applied,
// oldest first; none if another replica was faster. It waits for a migration that is
// already running for as long as ctx allows. If one fails, those before it stay applied and
// are returned with the error. A table that other sessions have locked is waited for in tries of two seconds
// with pauses between them, in which others get at it; after ten minutes it is ErrLocked.
func Up(ctx context.Context, db *sql.DB, o ...Option) ([]Migration, error) {
	return own.up(ctx, db, o...)
}

func (s series) up(ctx context.Context, db *sql.DB, o ...Option) ([]Migration, error) {
	var done []Migration
	err := s.withLock(ctx, db, newOptions(o), func(c *session) error {
		current, err := c.recover(ctx)
		if err != nil {
			return err
		}
		for _, bundle := range s.bundles() {
			last := bundle[len(bundle)-1]
			if last.Version <= current {
				continue
			}
			var statements strings.Builder
			for _, m := range bundle {
				statements.WriteString(s.read(m, "up") + "\n")
			}
			if err := c.run(ctx, Step{current, last.Version}, statements.String()); err != nil {
				return s.stepError(ctx, "apply", last, err)
			}
			done, current = append(done, bundle...), last.Version
		}
		return nil
	})
	return done, err
}

// Down undoes the last n migrations, or all if fewer are applied, and returns those that it
// undid, newest first. n is at least 1; migrations that are applied together count as one. On a database
// without any it returns ErrNothingApplied. Locks are waited for as by Up.
func Down(ctx context.Context, db *sql.DB, n int, o ...Option) ([]Migration, error) {
	return own.down(ctx, db, n, o...)
}

func (s series) down(ctx context.Context, db *sql.DB, n int, o ...Option) ([]Migration, error) {
	if n < 1 {
		return nil, fmt.Errorf("schema: undo %d migrations: the number must be at least 1", n)
	}
	var done []Migration
	err := s.withLock(ctx, db, newOptions(o), func(c *session) error {
		current, err := c.recover(ctx)
		if err != nil {
			return err
		}
		if current == 0 {
			return ErrNothingApplied
		}
		bundles := s.bundles()
		for i, bundle := range slices.Backward(bundles) {
			last := bundle[len(bundle)-1]
			if last.Version > current || n == 0 {
				continue
			}
			step := Step{From: current}
			if i > 0 {
				step.To = bundles[i-1][len(bundles[i-1])-1].Version
			}
			var statements strings.Builder
			for _, m := range slices.Backward(bundle) {
				statements.WriteString(s.read(m, "down") + "\n")
			}
			if err := c.run(ctx, step, statements.String()); err != nil {
				return s.stepError(ctx, "undo", last, err)
			}
			for _, m := range slices.Backward(bundle) {
				done = append(done, m)
			}
			current, n = step.To, n-1
		}
		return nil
	})
	return done, err
}

// Force records that the database is at version, 0 for none, and clean; it runs nothing. It
// is the operator's way out of ErrDirty, after looking which tables are there.
func Force(ctx context.Context, db *sql.DB, version uint) error {
	switch {
	case between(version):
		return fmt.Errorf("schema: force version %d: this platform applies it together with %d; force that, or %d, as the tables are",
			version, uint(staging), uint(base))
	case version != 0 && !own.knows(version):
		return fmt.Errorf("schema: force version %d: this platform has no such migration: %w", version, ErrUnknownVersion)
	}
	return own.withLock(ctx, db, newOptions(nil), func(c *session) error { return c.force(ctx, version) })
}

// stepError says which migration failed, and where to learn what became of it: if the
// connection broke during the commit, that is not known yet.
func (s series) stepError(ctx context.Context, verb string, m Migration, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err() // the driver only knows that its statement was cancelled
	}
	return fmt.Errorf("schema: %s %s: %w; each migration is applied completely or not at all; run `platform migrate status` to see whether this one was", verb, m, err)
}
