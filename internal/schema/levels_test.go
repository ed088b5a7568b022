package schema_test

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/schema"
	"github.com/molecule-ai/platform/migrations"
)

// carrier is the last commit that has the migrations between base and current one by one.
const carrier = "42bbc23515e2"

// Planted: the versions between taken for base, for current, and for pending; a dirty database served.
func TestStaging_OnlyBaseAndCurrentAndNewerAreServed(t *testing.T) {
	t.Parallel()
	latest := version(newest)
	for name, c := range map[string]struct {
		status  schema.Status
		staging bool
		refusal string // "": none
	}{
		"empty":               {schema.Status{}, false, "the database has no tables yet; run 'platform migrate up'"},
		"half of base":        {schema.Status{Current: version(1)}, false, fmt.Sprintf("the database is at version 20260401100000, and this platform needs %d; run 'platform migrate up'", latest)},
		"base":                {schema.Status{Current: version(base)}, false, ""},
		"pending_uploads":     {schema.Status{Current: 20260505100000}, false, "run 'platform migrate up' of commit " + carrier},
		"operate":             {schema.Status{Current: 20260601100000, Unknown: true}, false, "run 'platform migrate up' of commit " + carrier},
		"current":             {schema.Status{Current: latest}, true, ""},
		"breaking, but known": {schema.Status{Current: latest, Breaking: latest}, true, ""},
		"newer":               {schema.Status{Current: latest + 1, Unknown: true, Breaking: latest}, true, ""},
		"newer and breaking":  {schema.Status{Current: latest + 2, Unknown: true, Breaking: latest + 1}, false, fmt.Sprintf("migration %d breaks older platforms, such as this one; use the newer platform", latest+1)},
		"another's":           {schema.Status{Current: 42, Unknown: true}, false, "version 42, which this platform does not know"},
		"dirty":               {schema.Status{Current: latest, Dirty: true}, false, "`platform migrate force <version>`"},
	} {
		c.status.Latest = latest
		staging, err := c.status.Staging()
		if staging != c.staging || (err == nil) != (c.refusal == "") || err != nil && !strings.Contains(err.Error(), c.refusal) {
			t.Errorf("%s: %t, %v; want %t, %q", name, staging, err, c.staging, c.refusal)
		}
	}
}

// A database that a platform of before the fold left on its way is refused in one sentence, and stays as it is. Planted:
// not looked at; looked at after the mark of the interrupted step was taken away.
func TestBetweenBaseAndCurrent_IsRefusedAndLeftAlone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ record, current string }{
		"pending_uploads": {`UPDATE schema_migrations SET version = 20260505100000`, "20260505100000"},
		"operate":         {`UPDATE schema_migrations SET version = 20260601100000`, "20260601100000"},
		"interrupted": {`UPDATE schema_migrations SET version = 20260601100000, dirty = true;
			COMMENT ON TABLE schema_migrations IS 'platform: migrating from 20260505100000 to 20260601100000'`, "20260505100000"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := at(t, base)
			mustExec(t, db, c.record)
			before, recorded := dump(t, db), records(t, db)
			_, upErr := schema.Up(t.Context(), db)
			_, downErr := schema.Down(t.Context(), db, 1)
			_, serveErr := read(t, db).Staging()
			for _, err := range []error{upErr, downErr, serveErr} {
				want := "the database is at version " + c.current + ", between the schemas that this platform knows; " +
					"run 'platform migrate up' of commit " + carrier + " first, the last one that migrates it further"
				if err == nil || err.Error() != want {
					t.Errorf("%v, want %q", err, want)
				}
			}
			if got := dump(t, db) + records(t, db); got != before+recorded {
				t.Errorf("it is no longer as it was:\n%s", got)
			}
			assertLetGo(t, db)
			report := read(t, db).Report()
			if !strings.HasPrefix(report, "This platform can neither serve nor migrate: the database is at version "+c.current) || strings.Contains(report, "`platform migrate up`") {
				t.Errorf("the report is\n%s", report)
			}
		})
	}
}

func TestForce_TakesNoVersionBetween(t *testing.T) {
	t.Parallel()
	db := at(t, newest)
	err := schema.Force(t.Context(), db, 20260505100000)
	if err == nil || !strings.Contains(err.Error(), "together with 20260701100000; force that, or 20260401110000, as the tables are") {
		t.Errorf("%v, want one that says which", err)
	}
	assertAt(t, db, newest)
}

// newerFiles are this platform's migrations and then one more each, of which the ones named break older platforms.
func newerFiles(t *testing.T, breaks ...bool) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	names, err := fs.Glob(migrations.Files, "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		body, err := migrations.Files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: body}
	}
	for i, breaking := range breaks {
		up := fmt.Sprintf("CREATE TABLE later%d ();\n", i)
		if breaking {
			up = "-- Breaks older platforms: a column was renamed.\n" + up
		}
		name := fmt.Sprint(later(i), "_later")
		files[name+".up.sql"] = &fstest.MapFile{Data: []byte(up)}
		files[name+".down.sql"] = &fstest.MapFile{Data: []byte(fmt.Sprintf("DROP TABLE later%d;\n", i))}
	}
	return files
}

func later(i int) uint { return 20990101000000 + uint(i) }

// records is what the version table says, comments included.
func records(t *testing.T, db *sql.DB) (all string) {
	t.Helper()
	err := db.QueryRowContext(t.Context(), `SELECT concat_ws(' ', string_agg(concat_ws(' ', version, dirty, xmin), ','),
		obj_description('schema_migrations'::regclass, 'pg_class'), col_description('schema_migrations'::regclass, 1)) FROM schema_migrations`).Scan(&all)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A platform serves on a schema that a newer platform has migrated, unless a migration forbids it. Planted: the mark not
// written, written by every migration, not taken away on the way down, lost with an interrupted step; the older one's own
// latest not compared.
func TestOlderPlatform_ServesUnlessANewerMigrationBreaksIt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		breaks []bool
		want   uint // migration that the refusal names; 0: it serves
	}{
		"nothing breaks":           {[]bool{false, false}, 0},
		"the newest breaks":        {[]bool{false, true}, later(1)},
		"one in between breaks":    {[]bool{true, false}, later(0)},
		"two break":                {[]bool{true, true}, later(1)},
		"there are no newer files": {nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.Open(t, pgtest.Empty(t))
			newer := schema.NewNewer(newerFiles(t, c.breaks...))
			if _, err := newer.Up(t.Context(), db); err != nil {
				t.Fatal(err)
			}
			check := func(want uint) {
				t.Helper()
				before := records(t, db)
				staging, err := read(t, db).Staging()
				refusal := fmt.Sprintf("migration %d breaks older platforms, such as this one; use the newer platform", want)
				if want == 0 && (err != nil || !staging) || want != 0 && (err == nil || !strings.Contains(err.Error(), refusal)) {
					t.Errorf("staging %t, %v; want refused for %d", staging, err, want)
				}
				if report := read(t, db).Report(); strings.Contains(report, "can go on serving") != (want == 0 && len(c.breaks) > 0) {
					t.Errorf("the report is\n%s", report)
				}
				if _, err := schema.Up(t.Context(), db); len(c.breaks) > 0 && !errors.Is(err, schema.ErrUnknownVersion) {
					t.Errorf("up: %v, want ErrUnknownVersion", err)
				}
				if after := records(t, db); len(c.breaks) > 0 && after != before {
					t.Errorf("recorded is %s, was %s", after, before)
				}
			}
			check(c.want)
			if len(c.breaks) == 0 {
				return
			}
			// A step of the newer one is stopped, and this one is asked to migrate: it must not lose the mark.
			mustExec(t, db, fmt.Sprintf(`UPDATE schema_migrations SET version = %d, dirty = true;
				COMMENT ON TABLE schema_migrations IS 'platform: migrating from %d to %d'`, later(9), later(1), later(9)))
			check(c.want)
			if _, err := newer.Down(t.Context(), db, len(c.breaks)); err != nil {
				t.Fatal(err)
			}
			if got := records(t, db); strings.Contains(got, "platform:") {
				t.Errorf("down again, yet recorded is %s", got)
			}
			assertAt(t, db, newest)
		})
	}
}

// The mark is kept with the migration or not at all. Planted: written before the migration, in a transaction of its own.
func TestBreakingMigration_ThatFailsBreaksNobody(t *testing.T) {
	t.Parallel()
	db := at(t, newest)
	mustExec(t, db, `CREATE TABLE later1 ()`)
	if done, err := schema.NewNewer(newerFiles(t, false, true)).Up(t.Context(), db); err == nil || len(done) != 1 {
		t.Fatalf("applied %v, %v; want the second to fail, because its table is there", done, err)
	}
	if staging, err := read(t, db).Staging(); !staging || err != nil {
		t.Errorf("%t, %v; want served", staging, err)
	}
}
