package pendinguploads_test

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// A workspace's quota is locked, as by a replica that froze, and more of its uploads wait than there are connections.
// Those of another workspace, short and long, are staged meanwhile. Planted: a pool, or the places for long uploads,
// first come, first served.
func TestPostgres_AWorkspaceWhoseQuotaIsLockedWaitsAlone(t *testing.T) {
	t.Parallel()
	dsn := pgtest.New(t)
	db := openPool(t, connector(t, dsn, false))
	limits := testLimits
	limits.QuotaFiles, limits.QuotaBytes = 1000, 1<<30
	p := pendinguploads.NewPostgres(db, openPool(t, connector(t, dsn, true)), activity.New(db), limits)
	locked, other := uuid.New(), uuid.New()
	admin := pgtest.Open(t, dsn)
	lock, err := admin.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback() // after the first it does nothing
	if _, err := lock.Exec(`SELECT pg_advisory_xact_lock(hashtextextended($1, 20260601))`, locked.String()); err != nil {
		t.Fatal(err)
	}
	stage := func(ctx context.Context, workspace uuid.UUID, size int) error {
		_, err := p.Stage(ctx, workspace, []pendinguploads.NewFile{newFile("a.bin", content(size))})
		return err
	}
	var waiting sync.WaitGroup
	for range 12 {
		for _, size := range []int{10, 2 * mib} {
			waiting.Go(func() {
				if err := stage(t.Context(), locked, size); err != nil {
					t.Errorf("an upload that waited: %v", err)
				}
			})
		}
	}
	for begun := time.Now(); lockWaits(t, admin) < 5; time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatal("the uploads do not wait for the quota")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, size := range []int{10, 2 * mib, 10, 2 * mib} {
		if err := stage(ctx, other, size); err != nil {
			t.Errorf("%d bytes of another workspace: %v", size, err)
		}
	}
	for _, size := range []int{10, 2 * mib} {
		gone, leave := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer leave()
		if err := stage(gone, locked, size); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an upload of %d bytes whose client left: %v", size, err)
		}
	}
	if err := lock.Rollback(); err != nil {
		t.Fatal(err)
	}
	waiting.Wait()
}

// lockWaits returns how many advisory locks of the database are waited for.
func lockWaits(t *testing.T, db *sql.DB) (n int) {
	t.Helper()
	err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
		WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()`).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
