package pgtest_test

import (
	"database/sql"
	"strings"
	"sync"
	"testing"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

func TestNew_HasTheNewestSchema(t *testing.T) {
	t.Parallel()
	db := pgtest.Open(t, pgtest.New(t))
	for _, table := range []string{"workspaces", "activity_logs", "pending_uploads", "pending_upload_chunks"} {
		if !tableExists(t, db, table) {
			t.Errorf("there is no table %s", table)
		}
	}
}

func TestEmpty_HasNoTables(t *testing.T) {
	t.Parallel()
	db := pgtest.Open(t, pgtest.Empty(t))
	var tables int
	if err := db.QueryRow("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").Scan(&tables); err != nil {
		t.Fatal(err)
	}
	if tables != 0 {
		t.Errorf("there are %d tables", tables)
	}
}

func TestNew_GivesEachParallelTestItsOwnDatabase(t *testing.T) {
	t.Parallel()
	dsns := make([]string, 8)
	var all sync.WaitGroup
	for i := range dsns {
		all.Go(func() { dsns[i] = pgtest.New(t) })
	}
	all.Wait()
	for _, dsn := range dsns {
		db := pgtest.Open(t, dsn)
		if tableExists(t, db, "mine") {
			t.Fatal("another test's table is here")
		}
		if _, err := db.Exec("CREATE TABLE mine (id int)"); err != nil {
			t.Fatal(err)
		}
	}
}

// An open connection does not prevent the drop.
func TestNew_DropsTheDatabaseAtTheEndOfTheTest(t *testing.T) {
	t.Parallel()
	var dsn, name string
	t.Run("a test", func(t *testing.T) {
		dsn = pgtest.New(t)
		forgotten, err := sql.Open("postgres", dsn)
		if err != nil {
			t.Fatal(err)
		}
		if err := forgotten.QueryRow("SELECT current_database()").Scan(&name); err != nil {
			t.Fatal(err)
		}
	})
	db := pgtest.Open(t, pgtest.Server().DSN("postgres"))
	var exists bool
	if err := db.QueryRow("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists); err != nil {
		t.Fatal(err)
	}
	if exists || name == "" {
		t.Errorf("database %q is left", name)
	}
	if !strings.Contains(dsn, name) {
		t.Errorf("the connection string %s does not name the database %s", dsn, name)
	}
}

func tableExists(t *testing.T, db *sql.DB, name string) bool {
	t.Helper()
	var exists bool
	if err := db.QueryRow("SELECT to_regclass($1) IS NOT NULL", "public."+name).Scan(&exists); err != nil {
		t.Fatal(err)
	}
	return exists
}
