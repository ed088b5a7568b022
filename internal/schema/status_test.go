package schema_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/golang-migrate/migrate/v4/database"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/schema"
)

func TestRead_OfAnEmptyDatabaseCreatesNothing(t *testing.T) {
	t.Parallel()
	db := pgtest.Open(t, pgtest.Empty(t))

	st := read(t, db)
	if st.Current != 0 || st.Latest != version(newest) || len(st.Applied) != 0 || len(st.Pending) != len(all) ||
		st.Running || st.Interrupted != nil || st.Dirty || st.Unknown {
		t.Errorf("%+v, want everything pending and nothing else", st)
	}
	var exists bool
	if err := db.QueryRow(`SELECT to_regclass('schema_migrations') IS NOT NULL`).Scan(&exists); err != nil || exists {
		t.Errorf("the version table is there: %t, %v", exists, err)
	}
}

func TestRead_ListsWhatIsAppliedAndWhatIsPending(t *testing.T) {
	t.Parallel()
	for n := range newest + 1 {
		st := read(t, at(t, n))
		if st.Current != version(n) || len(st.Applied) != rests[n] || len(st.Pending) != len(all)-rests[n] {
			t.Errorf("%s: %+v", stepName(n), st)
		}
	}
}

func TestRead_DoesNotTakeAReaderForAMigration(t *testing.T) {
	t.Parallel()
	db := at(t, newest)
	var name string
	if err := db.QueryRow(`SELECT current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	lock, err := database.GenerateAdvisoryLockId(name, "public", "schema_migrations")
	if err != nil {
		t.Fatal(err)
	}
	release := sync.OnceFunc(hold(t, db, `SELECT pg_advisory_xact_lock_shared(`+lock+`)`))
	defer release()
	if st := read(t, db); st.Running {
		t.Error("running, with another reader only")
	}
	release()

	release = sync.OnceFunc(hold(t, db, `SELECT pg_advisory_xact_lock(`+lock+`)`))
	defer release()
	if st := read(t, db); !st.Running {
		t.Error("not running, with the lock held for a migration")
	}
}

func TestReport_SaysWhereItIsAndWhatToDo(t *testing.T) {
	t.Parallel()
	latest, last := version(newest), all[len(all)-1].String()
	for _, c := range []struct {
		name    string
		status  schema.Status
		want    []string
		wantNot []string
	}{
		{
			name:   "empty",
			status: schema.Status{Latest: latest, Pending: all},
			want:   []string{"No migration has been applied.\nRun `platform migrate up`", "  pending  20260401100000_workspaces\n"},
		},
		{
			name:    "up to date",
			status:  schema.Status{Current: latest, Latest: latest, Applied: all},
			want:    []string{"The schema is at " + last + ": up to date.", "  applied  " + all[len(all)-2].String() + "\n  applied  " + last + "\n"},
			wantNot: []string{"Run ", "pending  "},
		},
		{
			name:   "pending",
			status: schema.Status{Current: version(2), Latest: latest, Applied: all[:2], Pending: all[2:]},
			want: []string{
				"The schema is at 20260401110000_activity_logs.\nRun `platform migrate up` to apply what is pending.",
				"  applied  20260401110000_activity_logs\n  pending  20260505100000_pending_uploads\n",
			},
			wantNot: []string{"up to date"},
		},
		{
			name:    "running",
			status:  schema.Status{Current: version(2), Latest: latest, Running: true, Applied: all[:2], Pending: all[2:]},
			want:    []string{"A migration is running at this moment; look again when it is done."},
			wantNot: []string{"platform migrate"},
		},
		{
			name: "interrupted up",
			status: schema.Status{Latest: latest, Pending: all,
				Interrupted: &schema.Step{To: version(1)}},
			want: []string{
				"Applying 20260401100000_workspaces was interrupted on the way from the empty database; nothing of it was kept.",
				"The database needs no repair: run `platform migrate up` to try it again; should it fail, it says why.",
			},
		},
		{
			name: "interrupted down",
			status: schema.Status{Current: latest, Latest: latest, Applied: all,
				Interrupted: &schema.Step{From: latest, To: version(newest - 1)}},
			want: []string{
				"Undoing " + last + " was interrupted on the way to " + all[len(all)-2].String() + "; nothing of it was kept.",
				"run `platform migrate down` to undo it after all, or `platform migrate up` to stay",
			},
		},
		{
			name:   "dirty",
			status: schema.Status{Current: version(2), Latest: latest, Dirty: true, Applied: all[:2], Pending: all[2:]},
			want: []string{
				"The database is marked dirty: another migration tool failed while migrating to 20260401110000_activity_logs; some of its changes may exist.",
				"Compare the tables with the migrations, complete or undo the partial one, and then run `platform migrate force <version>`",
			},
			wantNot: []string{"migrate up", "applied"},
		},
		{
			name:   "newer",
			status: schema.Status{Current: 20990101000000, Latest: latest, Unknown: true, Applied: all},
			want: []string{
				"The database is at version 20990101000000, which this platform does not know: a newer one has migrated it.",
				"This platform can go on serving; to migrate, use the newer platform.",
			},
			wantNot: []string{"migrate up", "up to date"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			report := c.status.Report()
			for _, s := range c.want {
				if !strings.Contains(report, s) {
					t.Errorf("it lacks %q:\n%s", s, report)
				}
			}
			for _, s := range c.wantNot {
				if strings.Contains(report, s) {
					t.Errorf("it says %q:\n%s", s, report)
				}
			}
		})
	}
}
