package schema_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/schema"
)

// Each case is a step, from so many to so many, and a statement that
// stops it half way as long as its transaction is open.
var steps = []struct {
	name     string
	from, to int
	obstacle string
}{
	{"up from nothing", 0, 1, `CREATE TABLE workspace_tokens (id int)`},
	{"up to staging", base, staging, `CREATE TABLE upload_objects (id int)`},
	{"down from staging", staging, base, `LOCK TABLE upload_objects IN ACCESS SHARE MODE`},
	{"down to nothing", 1, 0, `LOCK TABLE workspaces IN ACCESS SHARE MODE`},
}

// take goes one step in the direction of to; up it goes all the way.
func take(ctx context.Context, db *sql.DB, from, to int) error {
	if to > from {
		_, err := schema.Up(ctx, db)
		return err
	}
	_, err := schema.Down(ctx, db, from-to)
	return err
}

func TestKilledMigration_IsReportedAndRecovers(t *testing.T) {
	t.Parallel()
	// Whatever was on its way, both directions must be open afterwards.
	next := []struct {
		name string
		run  func(*sql.DB) error
		want func(from int) int
	}{
		{"then up", func(db *sql.DB) error { _, err := schema.Up(t.Context(), db); return err }, func(int) int { return newest }},
		{"then down", func(db *sql.DB) error { _, err := schema.Down(t.Context(), db, 1); return err }, func(from int) int { return from - 1 }},
	}
	for _, s := range steps {
		for _, n := range next {
			t.Run(s.name+", "+n.name, func(t *testing.T) {
				t.Parallel()
				db := at(t, s.from)
				before := dump(t, db)
				release := hold(t, db, s.obstacle)
				result := make(chan error, 1)
				go func() { result <- take(t.Context(), db, s.from, s.to) }()
				waitFor(t, db, "it is half way", blocked)

				if st := read(t, db); !st.Running || st.Interrupted != nil || st.Dirty || st.Current != version(s.from) {
					t.Errorf("while it runs: %+v, want it running and nothing amiss", st)
				}

				kill(t, db)
				if err := within(t, result); err == nil {
					t.Fatal("killed, yet no error")
				}
				release()

				st := read(t, db)
				if want := (schema.Step{From: version(s.from), To: version(s.to)}); st.Interrupted == nil || *st.Interrupted != want {
					t.Errorf("interrupted: %+v, want %+v", st.Interrupted, want)
				}
				if st.Current != version(s.from) || st.Running || st.Dirty || st.Unknown {
					t.Errorf("after the kill: %+v, want to be at %d, interrupted", st, version(s.from))
				}
				if got := dump(t, db); got != before {
					t.Errorf("something of it was kept:\n%s\nbefore:\n%s", got, before)
				}

				err := n.run(db)
				if s.from == 0 && n.want(0) < 0 {
					if !errors.Is(err, schema.ErrNothingApplied) {
						t.Errorf("%v, want ErrNothingApplied", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				assertAt(t, db, n.want(s.from))
			})
		}
	}
}

func TestCancelledMigration_LeavesNothingBehind(t *testing.T) {
	t.Parallel()
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			db := at(t, s.from)
			before := dump(t, db)
			release := hold(t, db, s.obstacle)
			ctx, cancel := context.WithCancel(t.Context())
			result := make(chan error, 1)
			go func() { result <- take(ctx, db, s.from, s.to) }()
			waitFor(t, db, "it is half way", blocked)
			cancel()
			if err := within(t, result); !errors.Is(err, context.Canceled) {
				t.Errorf("%v, want context.Canceled", err)
			}
			release()
			assertLetGo(t, db)
			if got := dump(t, db); got != before {
				t.Errorf("something of it was kept:\n%s\nbefore:\n%s", got, before)
			}
			if err := take(t.Context(), db, s.from, s.to); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFailedMigration_IsNamedAndRecovers(t *testing.T) {
	t.Parallel()
	db := at(t, base)
	// The conflict is with its last table, so that all others, and those of 20260505100000, have been made by then.
	mustExec(t, db, `CREATE TABLE upload_objects (id int)`)

	_, err := schema.Up(t.Context(), db)
	if err == nil || !strings.Contains(err.Error(), all[3].String()) || !strings.Contains(err.Error(), "already exists") {
		t.Fatalf("%v, want it to name %s and the cause", err, all[3])
	}
	assertLetGo(t, db)

	st := read(t, db)
	if st.Current != version(base) || st.Interrupted == nil || st.Dirty {
		t.Errorf("%+v, want to be at %s, interrupted", st, all[1])
	}
	for _, sentence := range []string{
		"Applying 20260701100000_quotas_events_objects was interrupted on the way from 20260401110000_activity_logs; nothing of it was kept.",
		"run `platform migrate up` to try it again",
	} {
		if !strings.Contains(st.Report(), sentence) {
			t.Errorf("the report lacks %q:\n%s", sentence, st.Report())
		}
	}

	mustExec(t, db, `DROP TABLE upload_objects`)
	if _, err := schema.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	assertAt(t, db, newest)
}

// A crash between a migration and the note that it is done would leave the one without the
// other, if they were two transactions. Here the note fails, in either direction.
func TestMigration_IsKeptOnlyWithTheNoteThatItIsDone(t *testing.T) {
	t.Parallel()
	for _, s := range []struct{ from, to int }{{newest - 1, newest}, {newest, newest - 1}} {
		t.Run(fmt.Sprintf("%d to %d", s.from, s.to), func(t *testing.T) {
			t.Parallel()
			db := at(t, s.from)
			mustExec(t, db, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no notes today'; END $$`)
			mustExec(t, db, `CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON schema_migrations
				FOR EACH ROW WHEN (NOT NEW.dirty) EXECUTE FUNCTION refuse()`)
			before := dump(t, db)

			err := take(t.Context(), db, s.from, s.to)
			if err == nil || !strings.Contains(err.Error(), "no notes today") {
				t.Fatalf("%v, want the error of the note", err)
			}
			if got := dump(t, db); got != before {
				t.Errorf("it was kept without the note:\n%s\nbefore:\n%s", got, before)
			}

			mustExec(t, db, `DROP FUNCTION refuse CASCADE`)
			if err := take(t.Context(), db, s.from, s.to); err != nil {
				t.Fatal(err)
			}
			assertAt(t, db, s.to)
		})
	}
}

func TestDirtyByAnotherTool_IsForTheOperator(t *testing.T) {
	t.Parallel()
	for name, mark := range map[string]string{
		"no mark":              `SELECT`, // since the last step took its mark away
		"a mark of other days": `COMMENT ON TABLE schema_migrations IS 'platform: migrating from 0 to 20260401100000'`,
		"a comment of theirs":  `COMMENT ON TABLE schema_migrations IS 'ours'`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := at(t, newest)
			mustExec(t, db, `UPDATE schema_migrations SET dirty = true`)
			mustExec(t, db, mark)

			_, upErr := schema.Up(t.Context(), db)
			_, downErr := schema.Down(t.Context(), db, 1)
			for _, err := range []error{upErr, downErr} {
				if !errors.Is(err, schema.ErrDirty) {
					t.Fatalf("%v, want ErrDirty", err)
				}
				for _, part := range []string{all[len(all)-1].String(), "Compare the tables with the migrations", "`platform migrate force <version>`"} {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("the error lacks %q: %v", part, err)
					}
				}
			}
			assertLetGo(t, db)
			if st := read(t, db); !st.Dirty || st.Interrupted != nil {
				t.Errorf("%+v, want dirty", st)
			}

			if err := schema.Force(t.Context(), db, version(newest)); err != nil {
				t.Fatal(err)
			}
			assertAt(t, db, newest)
			if _, err := schema.Down(t.Context(), db, 1); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestForce_TakesOnlyVersionsThatExist(t *testing.T) {
	t.Parallel()
	db := at(t, newest)

	if err := schema.Force(t.Context(), db, 42); !errors.Is(err, schema.ErrUnknownVersion) {
		t.Errorf("force 42: %v, want ErrUnknownVersion", err)
	}
	assertAt(t, db, newest)
	if err := schema.Force(t.Context(), db, 0); err != nil {
		t.Fatal(err)
	}
	if st := read(t, db); st.Current != 0 || st.Dirty {
		t.Errorf("force 0: %+v, want to be at 0", st)
	}
}

func TestNewerDatabase_IsReadAndServedButNotMigrated(t *testing.T) {
	t.Parallel()
	db := at(t, newest)
	mustExec(t, db, `UPDATE schema_migrations SET version = 20990101000000`)

	_, upErr := schema.Up(t.Context(), db)
	_, downErr := schema.Down(t.Context(), db, 1)
	for _, err := range []error{upErr, downErr} {
		const sentence = "the database is at version 20990101000000, which this platform does not know; use the newer platform"
		if !errors.Is(err, schema.ErrUnknownVersion) || !strings.Contains(err.Error(), sentence) {
			t.Errorf("%v, want %q", err, sentence)
		}
	}
	if st := read(t, db); !st.Unknown || st.Current != 20990101000000 || len(st.Pending) > 0 {
		t.Errorf("%+v, want an unknown version and nothing pending", st)
	}
	if ok, err := read(t, db).Staging(); !ok || err != nil {
		t.Errorf("staging: %t, %v", ok, err)
	}
	assertLetGo(t, db)
}

// The newer platform's migration was stopped; this older one must not stumble over it.
func TestInterruptedByANewerPlatform_IsStillOurVersion(t *testing.T) {
	t.Parallel()
	db := at(t, newest)
	mustExec(t, db, `UPDATE schema_migrations SET version = 20990101000000, dirty = true`)
	mustExec(t, db, fmt.Sprintf(`COMMENT ON TABLE schema_migrations IS 'platform: migrating from %d to 20990101000000'`, version(newest)))

	if st := read(t, db); st.Unknown || st.Dirty || st.Current != version(newest) || st.Interrupted == nil {
		t.Errorf("%+v, want to be at %s, interrupted", st, all[len(all)-1])
	}
	if _, err := schema.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	assertAt(t, db, newest)
}
