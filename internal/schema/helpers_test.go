package schema_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/schema"
	"github.com/molecule-ai/platform/migrations"
)

// all are the migrations that the tests know. A new one belongs here too, and in rests.
var all = []schema.Migration{
	{Version: 20260401100000, Name: "workspaces"},
	{Version: 20260401110000, Name: "activity_logs"},
	{Version: 20260505100000, Name: "pending_uploads"},
	{Version: 20260701100000, Name: "quotas_events_objects"},
	{Version: 20261201110000, Name: "message_keys"},
	{Version: 20261201120000, Name: "inbox_pruning"},
	{Version: 20261201120100, Name: "indexes"},
	{Version: 20261201130000, Name: "secret_rotation"},
}

// rests says how many of all are applied after n steps: 20260505100000 and 20260701100000 are one step.
var rests = []int{0, 1, 2, 4, 5, 6, 7, 8}

var (
	newest  = len(rests) - 1 // steps to the newest schema
	base    = 2              // steps to the schema before staging
	staging = 3              // steps to the oldest schema with staging
)

// deadline is for what happens at once, on a machine that is busy.
const deadline = 30 * time.Second

// applied are the migrations of the first n steps.
func applied(n int) []schema.Migration { return all[:rests[n]] }

// version is the version after n steps.
func version(n int) uint {
	if n == 0 {
		return 0
	}
	return all[rests[n]-1].Version
}

func stepName(n int) string { return fmt.Sprintf("%d steps", n) }

// at returns a database that has been all the way up and back to n steps.
func at(t *testing.T, n int) *sql.DB {
	t.Helper()
	db := pgtest.Open(t, pgtest.Empty(t))
	if _, err := schema.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	if n < newest {
		if _, err := schema.Down(t.Context(), db, newest-n); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

// filesOnly returns a database with the up files of the first n steps and nothing else.
func filesOnly(t *testing.T, n int) *sql.DB {
	t.Helper()
	db := pgtest.Open(t, pgtest.Empty(t))
	for _, m := range applied(n) {
		body, err := migrations.Files.ReadFile(m.String() + ".up.sql")
		if err != nil {
			t.Fatal(err)
		}
		mustExec(t, db, string(body))
	}
	return db
}

func read(t *testing.T, db *sql.DB) schema.Status {
	t.Helper()
	st, err := schema.Read(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// assertAt checks that n steps are taken, by the record and by the tables.
func assertAt(t *testing.T, db *sql.DB, n int) {
	t.Helper()
	if st := read(t, db); st.Current != version(n) || st.Running || st.Interrupted != nil || st.Dirty || st.Unknown {
		t.Errorf("%+v, want to be at %d and clean", st, version(n))
	}
	if got, want := dump(t, db), dump(t, filesOnly(t, n)); got != want {
		t.Errorf("the schema is not that of %s:\n%s\nwant:\n%s", stepName(n), got, want)
	}
}

// assertLetGo checks that no connection of the pool is in use and no lock is left.
func assertLetGo(t *testing.T, db *sql.DB) {
	t.Helper()
	if n := db.Stats().InUse; n != 0 {
		t.Errorf("%d connections are in use", n)
	}
	waitFor(t, db, "no migration lock is left", `SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory'`+here)
}

func mustExec(t *testing.T, db *sql.DB, query string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// hold runs a statement and keeps its transaction open until release.
func hold(t *testing.T, db *sql.DB, statement string) (release func()) {
	t.Helper()
	tx, err := db.BeginTx(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	if _, err := tx.Exec(statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return func() { _ = tx.Rollback() }
}

const (
	// here narrows a query on pg_locks to this database; some locks belong to none.
	here = ` AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())`
	// blocked: somebody waits for a table, which here is a migration in front of an obstacle.
	blocked = `SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND locktype <> 'advisory'` + here
)

// waitFor asks a yes-or-no query until the answer is yes.
func waitFor(t *testing.T, db *sql.DB, what, query string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var yes bool
		if err := db.QueryRowContext(ctx, query).Scan(&yes); err != nil {
			t.Fatalf("waiting until %s: %v", what, err)
		}
		if yes {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waiting until %s: not within %s", what, deadline)
		}
	}
}

// within is what comes from the channel, in time.
func within(t *testing.T, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(deadline):
		t.Fatalf("no end within %s", deadline)
		return nil
	}
}

// kill ends the session that waits in front of an obstacle, and returns when it is gone.
func kill(t *testing.T, db *sql.DB) {
	t.Helper()
	var gone bool
	err := db.QueryRowContext(t.Context(),
		`SELECT pg_terminate_backend(pid, 20000) FROM pg_locks WHERE NOT granted AND locktype <> 'advisory'`+here).Scan(&gone)
	if err != nil || !gone {
		t.Fatalf("kill the migration: %t, %v", gone, err)
	}
}

// dumpQuery describes whatever a migration can make, a line each, but for the version table. Columns are
// in their order; what PostgreSQL keeps in the place of a dropped one is none. PostgreSQL 18 has a constraint
// for each NOT NULL, which the column's line says anyway.
const dumpQuery = `
WITH rel AS (
    SELECT c.* FROM pg_class c
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relname NOT LIKE 'schema_migrations%'
)
SELECT format('%s %s %s %s toast=%s %s', relkind, relname, relpersistence, reloptions,
    (SELECT t.reloptions FROM pg_class t WHERE t.oid = rel.reltoastrelid), obj_description(oid, 'pg_class')) FROM rel
UNION ALL
SELECT format('column %s.%s %s: %s storage=%s compression=%s collation=%s null=%s default=%s identity=%s generated=%s %s',
    rel.relname, a.place, a.attname, format_type(a.atttypid, a.atttypmod), a.attstorage, a.attcompression, a.attcollation,
    NOT a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated, col_description(rel.oid, a.attnum))
FROM rel JOIN (SELECT *, row_number() OVER (PARTITION BY attrelid ORDER BY attnum) AS place FROM pg_attribute
    WHERE attnum > 0 AND NOT attisdropped) a ON a.attrelid = rel.oid
LEFT JOIN pg_attrdef d ON d.adrelid = rel.oid AND d.adnum = a.attnum
UNION ALL
SELECT format('constraint %s %s: %s %s', rel.relname, conname, pg_get_constraintdef(k.oid), convalidated)
FROM rel JOIN pg_constraint k ON k.conrelid = rel.oid AND k.contype <> 'n'
UNION ALL
SELECT format('index %s valid=%s', pg_get_indexdef(indexrelid), indisvalid) FROM rel JOIN pg_index i ON i.indexrelid = rel.oid
UNION ALL
SELECT format('trigger %s', pg_get_triggerdef(g.oid)) FROM rel JOIN pg_trigger g ON g.tgrelid = rel.oid AND NOT tgisinternal
UNION ALL
SELECT format('view %s', pg_get_viewdef(oid)) FROM rel WHERE relkind IN ('v', 'm')
UNION ALL
SELECT format('function %s', pg_get_functiondef(oid)) FROM pg_proc WHERE pronamespace = current_schema()::regnamespace AND prokind IN ('f', 'p')
UNION ALL
SELECT format('type %s %s %s', typtype, typname, (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = y.oid))
FROM pg_type y WHERE typnamespace = current_schema()::regnamespace AND typname NOT LIKE '%schema_migrations%'
UNION ALL
SELECT format('extension %s', extname) FROM pg_extension WHERE extname <> 'plpgsql'
UNION ALL
SELECT format('schema %s', nspname) FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', current_schema())`

func dump(t *testing.T, db *sql.DB) string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT line FROM (`+dumpQuery+`) AS d (line) ORDER BY line COLLATE "C"`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var b strings.Builder
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		b.WriteString(line + "\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
