package server

import (
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/testcluster"
)

// StartPgBouncer returns the way to the database of dsn through a PgBouncer in transaction mode that has
// so many sessions, and further settings.
func StartPgBouncer(t *testing.T, dsn string, sessions int, settings ...string) string {
	t.Helper()
	dir, err := testcluster.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var log strings.Builder
	b, err := testcluster.StartPgBouncer("../../deploy/pgbouncer/pgbouncer.ini", dir, dsn, sessions, &log, settings...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("PgBouncer:\n%s", log.String())
		}
	})
	return b.DatabaseURL
}

// newPooled returns a server of which only the pools are there.
func newPooled(t *testing.T, databaseURL, directURL string, log *strings.Builder) *Server {
	t.Helper()
	s := &Server{config: config.Config{DatabaseURL: databaseURL, DatabaseDirectURL: directURL}, log: slog.New(slog.NewTextHandler(log, nil))}
	t.Cleanup(s.release)
	return s
}

// Whoever forgets a setting learns it at the start, not from odd errors later. Planted: no look at the
// sessions; no advice when PgBouncer refuses the limits.
func TestPgBouncer_WithoutTheDirectURLIsRefused(t *testing.T) {
	t.Parallel()
	direct := pgtest.New(t)
	pooler := StartPgBouncer(t, direct, 4)
	tolerant := StartPgBouncer(t, direct, 4, "ignore_startup_parameters = lock_timeout, statement_timeout, idle_in_transaction_session_timeout, synchronous_commit")
	for name, c := range map[string]struct{ database, direct, want string }{
		"limits refused":                {pooler, "", "write PostgreSQL's own address into DATABASE_DIRECT_URL"},
		"limits ignored":                {tolerant, "", "leads to a pooler in transaction mode; if it is"},
		"the pooler as the direct way":  {pooler, tolerant, "DATABASE_DIRECT_URL leads to a pooler"},
		"nothing there":                 {pooler, "postgres://platform@127.0.0.1:1/platform?sslmode=disable", "DATABASE_DIRECT_URL cannot be reached"},
		"PostgreSQL, as it usually is":  {direct, "", ""},
		"through the pooler and beside": {pooler, direct, ""},
	} {
		var log strings.Builder
		err := newPooled(t, c.database, c.direct, &log).openDatabase(t.Context())
		if c.want == "" && (err != nil || log.String() != "") || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q\n%s", name, err, c.want, log.String())
		}
	}
}

// The pooler's sessions get their limits from the file in deploy/; if an operator leaves them out, a line
// says so. Planted: no connect_query in the file; no look at the limits.
func TestPgBouncer_LimitsItsSessions(t *testing.T) {
	t.Parallel()
	direct := pgtest.New(t)
	var log strings.Builder
	s := newPooled(t, StartPgBouncer(t, direct, 2), direct, &log)
	if err := s.openDatabase(t.Context()); err != nil || log.String() != "" {
		t.Fatalf("%v\n%s", err, log.String())
	}
	var got string
	const show = `SELECT concat_ws(' ', current_setting('idle_in_transaction_session_timeout'), current_setting('lock_timeout'),
		current_setting('statement_timeout'))`
	if err := s.db.QueryRowContext(t.Context(), show).Scan(&got); err != nil || got != "15s 20s 1min" {
		t.Errorf("%q, %v", got, err)
	}
	// In the place of a pooler, a PostgreSQL whose sessions have no limits.
	s = newPooled(t, direct, direct, &log)
	if err := s.openDatabase(t.Context()); err != nil || !strings.Contains(log.String(), "no limit of time") {
		t.Errorf("%v\n%s", err, log.String())
	}
}

// Room is reclaimed in a session past the pooler, whose own keep neither the lock nor the setting.
// Planted: Reclaim on the pool that leads through it.
func TestPgBouncer_ReclaimsRoomBesideIt(t *testing.T) {
	t.Parallel()
	direct := pgtest.New(t)
	var log strings.Builder
	s := newPooled(t, StartPgBouncer(t, direct, 2), direct, &log)
	if err := s.openDatabase(t.Context()); err != nil {
		t.Fatal(err)
	}
	storage := pendinguploads.NewPostgres(s.db, s.staging, activity.New(s.db), pendinguploads.Limits{})
	storage.UseSessionPool(s.sessions)
	db := pgtest.Open(t, direct)
	for range 3 {
		if err := storage.Reclaim(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var locks int
	if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 20260601`).Scan(&locks); err != nil || locks != 0 {
		t.Errorf("%d locks are left, %v", locks, err)
	}
	var n int
	for begun := time.Now(); n == 0; time.Sleep(10 * time.Millisecond) { // the count may come a little later
		const vacuums = `SELECT vacuum_count FROM pg_stat_all_tables WHERE relname = 'pending_uploads'`
		if err := db.QueryRowContext(t.Context(), vacuums).Scan(&n); err != nil || time.Since(begun) > 20*time.Second {
			t.Fatalf("%d vacuums, %v", n, err)
		}
	}
	for range 8 {
		var timeout string
		if err := s.db.QueryRowContext(t.Context(), `SHOW statement_timeout`).Scan(&timeout); err != nil || timeout != "1min" {
			t.Errorf("a statement may take %s now, %v", timeout, err)
		}
	}
}
