// Package schema brings a database to the version that this binary's migrations describe,
// and tells which version a database has.
//
// It promises that several replicas may call Up at once: one applies, the others wait for
// it and go on. It promises that a migration is applied together with the note that it is,
// or not at all, so one that failed or was killed has left nothing behind and the next Up
// or Down simply goes on. And Read changes nothing, on any database.
//
// It holds only for migrations that leave BEGIN and COMMIT to it, and for a connection that
// keeps its session: a pooler that hands out one session per transaction loses the lock. It
// does not decide when to migrate, and it does not repair what another tool left half done;
// it says so and refuses.
package schema

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/golang-migrate/migrate/v4/source"
	"github.com/lib/pq"

	"github.com/molecule-ai/platform/migrations"
)

// Errors that Up, Down and Force return, each wrapped in a sentence that names the version.
var (
	// ErrUnknownVersion means that no migration of this binary has that version; as a
	// rule a newer one has been here.
	ErrUnknownVersion = errors.New("schema: unknown version")
	// ErrDirty means that another tool left the database marked dirty, so nobody but an
	// operator can say whether its last migration is there in whole, in part or not.
	ErrDirty = errors.New("schema: database is dirty")
	// ErrNothingApplied means that there is no migration to undo.
	ErrNothingApplied = errors.New("schema: no migration is applied, so there is nothing to undo")
)

// A Migration is one version of the schema, an up and a down.
type Migration struct {
	Version uint // a timestamp, YYYYMMDDhhmmss
	Name    string
}

// String is the name of the migration's files, without .up.sql or .down.sql.
func (m Migration) String() string { return fmt.Sprintf("%d_%s", m.Version, m.Name) }

// Up applies every migration that is pending and returns those that this call applied,
// oldest first; none if another replica was faster. It waits for a migration that is
// already running for as long as ctx allows. If one fails, those before it stay applied and
// are returned with the error.
func Up(ctx context.Context, db *sql.DB) ([]Migration, error) {
	var done []Migration
	err := withLock(ctx, db, func(s *session) error {
		current, err := s.recover(ctx)
		if err != nil {
			return err
		}
		for _, m := range known {
			if m.Version <= current {
				continue
			}
			if err := s.migrate.Steps(1); err != nil {
				return stepError(ctx, "apply", m, err)
			}
			done = append(done, m)
		}
		return nil
	})
	return done, err
}

// Down undoes the last n migrations, or all if fewer are applied, and returns those that it
// undid, newest first. n is at least 1. On a database without any it returns
// ErrNothingApplied.
func Down(ctx context.Context, db *sql.DB, n int) ([]Migration, error) {
	if n < 1 {
		return nil, fmt.Errorf("schema: undo %d migrations: the number must be at least 1", n)
	}
	var done []Migration
	err := withLock(ctx, db, func(s *session) error {
		current, err := s.recover(ctx)
		if err != nil {
			return err
		}
		if current == 0 {
			return ErrNothingApplied
		}
		for _, m := range slices.Backward(known) {
			if m.Version > current || len(done) == n {
				continue
			}
			if err := s.migrate.Steps(-1); err != nil {
				return stepError(ctx, "undo", m, err)
			}
			done = append(done, m)
		}
		return nil
	})
	return done, err
}

// Force records that the database is at version, 0 for none, and clean; it runs nothing. It
// is the operator's way out of ErrDirty, once they have looked what is there.
func Force(ctx context.Context, db *sql.DB, version uint) error {
	if version != 0 && !isKnown(version) {
		return fmt.Errorf("schema: force version %d: this platform has no such migration: %w", version, ErrUnknownVersion)
	}
	return withLock(ctx, db, func(s *session) error {
		return s.driver.force(version)
	})
}

// Base tells whether the tables are there without which the platform cannot serve.
func Base(ctx context.Context, db *sql.DB) (bool, error) {
	return haveTables(ctx, db, "workspaces", "workspace_tokens", "activity_logs", "activity_counters")
}

// Staging tells whether the tables are there that uploads to poll workspaces need.
func Staging(ctx context.Context, db *sql.DB) (bool, error) {
	return haveTables(ctx, db, "pending_uploads", "pending_upload_chunks")
}

// Operating tells whether the tables are there that quotas, keys of uploads and sweeping need.
func Operating(ctx context.Context, db *sql.DB) (bool, error) {
	return haveTables(ctx, db, "upload_reservations", "upload_keys", "activity_readers", "receipts")
}

// Objects tells whether the tables are there that files need whose bytes are in a store of objects.
func Objects(ctx context.Context, db *sql.DB) (bool, error) {
	return haveTables(ctx, db, "upload_stores", "upload_objects")
}

const sqlHaveTables = `SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest($1::text[]) AS name`

func haveTables(ctx context.Context, db *sql.DB, names ...string) (bool, error) {
	var all bool
	if err := db.QueryRowContext(ctx, sqlHaveTables, pq.Array(names)).Scan(&all); err != nil {
		return false, fmt.Errorf("schema: look for tables: %w", err)
	}
	return all, nil
}

// stepError says which migration failed, and where to learn what became of it: if the
// connection broke during the commit, nobody knows yet.
func stepError(ctx context.Context, verb string, m Migration, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err() // the driver only knows that its statement was cancelled
	}
	return fmt.Errorf("schema: %s %s: %w; a migration is kept whole or not at all, and `platform migrate status` tells which", verb, m, err)
}

// known are this binary's migrations, oldest first.
var known = mustList(migrations.Files)

// mustList panics on a file that is not a migration, or is only one half of one:
// golang-migrate would pass over both in silence.
func mustList(files fs.ReadDirFS) []Migration {
	entries, err := files.ReadDir(".")
	if err != nil {
		panic(fmt.Sprintf("schema: list migrations: %v", err))
	}
	var list []Migration
	halves := map[Migration]int{}
	for _, e := range entries {
		m, err := source.Parse(e.Name())
		if err != nil {
			panic(fmt.Sprintf("schema: %s is not the name of a migration: %v", e.Name(), err))
		}
		both := Migration{Version: m.Version, Name: m.Identifier}
		if halves[both]++; halves[both] == 2 {
			list = append(list, both)
		}
	}
	if len(entries) != 2*len(list) {
		panic("schema: a migration lacks its up or its down")
	}
	slices.SortFunc(list, func(a, b Migration) int { return cmp.Compare(a.Version, b.Version) })
	return list
}

func isKnown(version uint) bool {
	return slices.ContainsFunc(known, func(m Migration) bool { return m.Version == version })
}

// label is the version with its name, if this binary knows it.
func label(version uint) string {
	if i := slices.IndexFunc(known, func(m Migration) bool { return m.Version == version }); i >= 0 {
		return known[i].String()
	}
	if version == 0 {
		return "the empty database"
	}
	return fmt.Sprintf("version %d", version)
}
