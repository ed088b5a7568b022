package schema_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/schema"
)

// A reader keeps a table that a migration changes. Meanwhile others write to it and wait no longer than a try, and when the
// reader is done the migration is applied. Planted: no lock_timeout, with which the writers wait for the reader; no
// retry; the sentence without the table.
func TestUp_LetsTrafficThroughWhileAReaderHoldsATable(t *testing.T) {
	t.Parallel()
	db := pgtest.Open(t, pgtest.Empty(t))
	files := newerFiles(t, false)
	files["20990101000000_later.up.sql"].Data = []byte("CREATE TABLE later0 ();\nALTER TABLE activity_counters ADD COLUMN later integer;\n")
	newer := schema.NewNewer(files)
	if _, err := schema.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	release := hold(t, db, `SELECT count(*) FROM activity_counters`)

	said := make(chan string, 1000)
	migrated := make(chan error, 1)
	go func() {
		_, err := newer.Up(t.Context(), db, schema.Impatient(time.Second, 10*deadline), schema.Progress(func(s string) { said <- s }))
		migrated <- err
	}()
	for len(said) < 3 { // writes go on through three tries
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		_, err := db.ExecContext(ctx, `INSERT INTO activity_counters VALUES (gen_random_uuid(), 1)`)
		cancel()
		if err != nil {
			t.Fatalf("a write beside the migration: %v", err)
		}
		if len(migrated) > 0 {
			t.Fatalf("the migration has ended: %v", <-migrated)
		}
	}
	release()
	if err := within(t, migrated); err != nil {
		t.Fatal(err)
	}
	close(said)
	named := false // by one of them: what waits is looked for from a connection that may be slow
	for sentence := range said {
		named = named || strings.HasPrefix(sentence, "waiting for a lock on activity_counters, which process ") && strings.Contains(sentence, "idle in transaction")
		if !strings.HasPrefix(sentence, "waiting for a lock on a") || !strings.Contains(sentence, " follows in ") {
			t.Errorf("said %q", sentence)
		}
	}
	if !named {
		t.Error("no sentence says which table, and who has it")
	}
	var there bool
	if err := db.QueryRowContext(t.Context(), `SELECT to_regclass('later0') IS NOT NULL`).Scan(&there); err != nil || !there {
		t.Errorf("the migration is not there: %v", err)
	}
	assertLetGo(t, db)
}

// Planted: no bound; the bound passed over in silence.
func TestUp_GivesUpOnATableThatStaysLocked(t *testing.T) {
	t.Parallel()
	db := at(t, newest)
	release := hold(t, db, `LOCK TABLE activity_counters IN ACCESS SHARE MODE`)
	files := newerFiles(t, false)
	files["20990101000000_later.up.sql"].Data = []byte("ALTER TABLE activity_counters ADD COLUMN later integer;\n")
	before := dump(t, db)
	_, err := schema.NewNewer(files).Up(t.Context(), db, schema.Impatient(50*time.Millisecond, time.Second))
	if !errors.Is(err, schema.ErrLocked) || !strings.Contains(err.Error(), "20990101000000_later") || !strings.Contains(err.Error(), " tries in ") {
		t.Errorf("%v, want ErrLocked", err)
	}
	release()
	assertLetGo(t, db)
	if got := dump(t, db); got != before {
		t.Errorf("something of it was kept:\n%s", got)
	}
	if st := read(t, db); st.Current != version(newest) || st.Dirty {
		t.Errorf("%+v, want to be at %d", st, version(newest))
	}
}
