package server_test

import (
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/database"
	"github.com/molecule-ai/platform/internal/database/databasetest"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// VACUUM runs in a session past the pooler, whose own sessions keep neither the lock nor the setting. Planted: Reclaim on
// the pool that leads through the pooler.
func TestPgBouncer_ReclaimsSpacePastIt(t *testing.T) {
	t.Parallel()
	direct := pgtest.New(t)
	pools, err := database.Open(t.Context(), database.Config{
		URL: databasetest.StartPgBouncer(t, direct, 2), DirectURL: direct, QueryConns: 8, FileConns: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pools.Close() })
	storage := pendinguploads.NewPostgres(pools.Queries, pools.FileWrites, activity.New(pools.Queries), pendinguploads.Limits{})
	storage.UseSessionPool(pools.Sessions)
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
	for begun := time.Now(); n == 0; time.Sleep(10 * time.Millisecond) { // the counter is updated asynchronously
		const vacuums = `SELECT vacuum_count FROM pg_stat_all_tables WHERE relname = 'pending_uploads'`
		if err := db.QueryRowContext(t.Context(), vacuums).Scan(&n); err != nil || time.Since(begun) > testTimeout {
			t.Fatalf("%d vacuums, %v", n, err)
		}
	}
	for range 8 {
		var timeout string
		if err := pools.Queries.QueryRowContext(t.Context(), `SHOW statement_timeout`).Scan(&timeout); err != nil || timeout != "1min" {
			t.Errorf("statement_timeout is %s now, %v", timeout, err)
		}
	}
}
