package schema

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
)

const sqlHasVersions = `SELECT to_regclass('schema_migrations') IS NOT NULL`

// A Status is what a database's schema is at, compared with this binary's migrations.
type Status struct {
	Current uint // version the schema is at, 0 for none; only a claim if Dirty
	Latest  uint // newest version that this binary knows

	Applied []Migration // of those this binary knows, oldest first
	Pending []Migration // what Up would apply, oldest first

	// Running: a migration is under way at this moment, or about to be.
	Running bool
	// Interrupted is the step that this platform began and did not finish, if any.
	// Nothing of it was kept, so Current is where it came from.
	Interrupted *Step
	// Dirty: another tool has left the database in a state that only an operator can judge.
	Dirty bool
	// Unknown: Current is no version of this binary, so a newer one has been here.
	Unknown bool
	// Breaking is the newest applied migration that breaks platforms which do not know it, 0 for none.
	Breaking uint
}

// Staging reports whether this platform stages files on such a schema: it does not on base, where
// it serves all else. The error is a sentence for an operator; with it, the platform must not serve.
func (s Status) Staging() (bool, error) {
	switch {
	case s.Dirty:
		return false, dirtyError(s.Current)
	case s.Current == 0:
		return false, errors.New("the database has no tables yet; run 'platform migrate up' with the same DATABASE_URL first")
	case between(s.Current):
		return false, betweenError(s.Current)
	case s.Current > s.Latest && s.Breaking > s.Latest:
		return false, fmt.Errorf("the database is at version %d, and migration %d breaks older platforms, such as this one; use the newer platform",
			s.Current, s.Breaking)
	case s.Current >= s.Latest:
		return true, nil
	case s.Current == base:
		return false, nil
	case s.Unknown:
		return false, fmt.Errorf("the database is at version %d, which this platform does not know; use the platform that migrated it", s.Current)
	}
	return false, fmt.Errorf("the database is at version %d, and this platform needs %d; run 'platform migrate up' with the same DATABASE_URL first",
		s.Current, s.Latest)
}

// Read tells what the database is at. It creates nothing, works on an empty database, and
// takes a newer binary's database or a dirty one for what it is, without an error.
func Read(ctx context.Context, db *sql.DB) (Status, error) {
	// Read committed, whatever the server's default: the record must be read as it is
	// after the lock, not as it was before.
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted, ReadOnly: true})
	if err != nil {
		return Status{}, fmt.Errorf("schema: read the status: %w", err)
	}
	defer func() { _ = tx.Rollback() }()

	// A migration under way looks like one that was interrupted, but for the lock that it
	// holds. Ours is shared, so that readers do not take each other for a migration.
	where, err := locate(ctx, tx)
	if err != nil {
		return Status{}, err
	}
	var quiet, exists bool
	if err := tx.QueryRowContext(ctx, sqlTryReading, where.lock).Scan(&quiet); err != nil {
		return Status{}, fmt.Errorf("schema: look for a running migration: %w", err)
	}
	if err := tx.QueryRowContext(ctx, sqlHasVersions).Scan(&exists); err != nil {
		return Status{}, fmt.Errorf("schema: look for the version table: %w", err)
	}
	var r record
	if exists {
		if r, err = readRecord(ctx, tx); err != nil {
			return Status{}, err
		}
	}
	return newStatus(r, !quiet), nil
}

func newStatus(r record, running bool) Status {
	s := Status{Current: r.version, Latest: own.latest(), Running: running, Breaking: r.breaking}
	if r.step != nil {
		s.Current = r.step.From
	}
	if !running {
		s.Interrupted = r.step
		s.Dirty = r.dirty && r.step == nil
	}
	s.Unknown = s.Current != 0 && !own.knows(s.Current)
	for _, m := range own.list {
		if m.Version <= s.Current {
			s.Applied = append(s.Applied, m)
		} else {
			s.Pending = append(s.Pending, m)
		}
	}
	return s
}

// Report is the status for a person: where the schema is, what to do about it, and the list
// of migrations.
func (s Status) Report() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	switch {
	case s.Dirty:
		say("The database is marked dirty: %v.", dirtyError(s.Current))
	case between(s.Current):
		say("This platform can neither serve nor migrate: %v.", betweenError(s.Current))
	case s.Unknown:
		say("The database is at version %d, which this platform does not know: a newer one has migrated it.", s.Current)
		if _, err := s.Staging(); err != nil {
			say("This platform cannot serve: %v.", err)
		} else {
			say("This platform can go on serving; to migrate, use the newer platform.")
		}
	case s.Current == 0:
		say("No migration has been applied.")
	case len(s.Pending) == 0:
		say("The schema is at %s: up to date.", own.label(s.Current))
	default:
		say("The schema is at %s.", own.label(s.Current))
	}

	switch {
	case between(s.Current):
	case s.Running:
		say("A migration is running at this moment; look again when it is done.")
	case s.Interrupted != nil && s.Interrupted.To < s.Interrupted.From:
		say("Undoing %s was interrupted on the way to %s; nothing of it was kept.", own.label(s.Interrupted.From), own.label(s.Interrupted.To))
		say("The database needs no repair: run `platform migrate down` to undo it after all, or `platform migrate up` to stay.")
	case s.Interrupted != nil:
		say("Applying %s was interrupted on the way from %s; nothing of it was kept.", own.label(s.Interrupted.To), own.label(s.Interrupted.From))
		say("The database needs no repair: run `platform migrate up` to try it again; should it fail, it says why.")
	case len(s.Pending) > 0 && !s.Unknown && !s.Dirty:
		say("Run `platform migrate up` to apply what is pending.")
	}

	applied, pending := "applied", "pending"
	if s.Dirty {
		applied, pending = "known", "known" // which of them are there is the question
	}
	b.WriteByte('\n')
	for _, m := range s.Applied {
		say("  %s  %s", applied, m)
	}
	for _, m := range s.Pending {
		say("  %s  %s", pending, m)
	}
	return b.String()
}

// dirtyError says what an operator can do about a dirty database. The version it is marked
// with is where the step led to, up or down; from where, the tool has not recorded.
func dirtyError(version uint) error {
	return fmt.Errorf("another migration tool failed while migrating to %s; some of its changes may exist. "+
		"Compare the tables with the migrations, complete or undo the partial one, and then run `platform migrate force <version>` "+
		"with the newest version that is complete, 0 for none", own.label(version))
}
