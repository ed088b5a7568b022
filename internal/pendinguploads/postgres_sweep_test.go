package pendinguploads_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/database"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

const (
	// Rows with a size that their content does not have, so that a test need not write gigabytes.
	sqlInsertAcked = `
INSERT INTO pending_uploads (workspace_id, filename, mimetype, size_bytes, sha256, content, acked_at)
VALUES (gen_random_uuid(), 'a.txt', 'text/plain', $1, sha256(''), '', now() - interval '1 hour')`
	sqlInsertReservation = `
INSERT INTO upload_reservations (workspace_id, files, bytes, expires_at)
VALUES ($1, 1, 10, now() + $2 * interval '1 second')`
	sqlInsertKeys = `
INSERT INTO upload_keys (workspace_id, key, fingerprint, files, expires_at)
SELECT $1, 'key-' || n, sha256(''), '[]', now() + $2 * interval '1 second' FROM generate_series(1, $3) n`
	sqlRenewKey = `UPDATE upload_keys SET expires_at = now() + interval '1 hour' WHERE workspace_id = $1 AND key = 'key-1'`
)

func mustExec(t *testing.T, db *sql.DB, statement string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func mustCount(t *testing.T, db *sql.DB, table string, want int) {
	t.Helper()
	var n int
	if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM `+table).Scan(&n); err != nil || n != want {
		t.Errorf("%s has %d rows (%v), want %d", table, n, err, want)
	}
}

func mustSweep(t *testing.T, storage pendinguploads.Storage, want pendinguploads.Swept) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // a sweep that waits for a lock would hang
	defer cancel()
	if swept, err := storage.Sweep(ctx, 0); err != nil || swept != want {
		t.Errorf("swept %+v, %v; want %+v", swept, err, want)
	}
}

// A batch is 200 files, or ends after the file with which it exceeds 64 MiB. Planted: either bound left
// out of the statement; More not set by either.
func TestSweep_BatchIsBoundedByFilesAndBytes(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	storage, db := newPostgres(t)
	swept := func(files int, bytes int64, more bool) pendinguploads.Swept {
		return pendinguploads.Swept{Acked: files, AckedBytes: bytes, More: more}
	}
	insert := func(n int, bytes int64) {
		for range n {
			mustExec(t, db, sqlInsertAcked, bytes)
		}
	}
	insert(450, 1)
	mustSweep(t, storage, swept(200, 200, true))
	mustSweep(t, storage, swept(200, 200, true))
	mustSweep(t, storage, swept(50, 50, false))
	insert(200, 1)
	mustSweep(t, storage, swept(200, 200, true)) // the batch is full, although there are no more
	mustSweep(t, storage, swept(0, 0, false))

	insert(5, 16*mib)
	mustSweep(t, storage, swept(4, 64*mib, true))
	mustSweep(t, storage, swept(1, 16*mib, false))
	insert(3, 1<<30) // larger than a batch
	for _, more := range []bool{true, true, false} {
		mustSweep(t, storage, swept(1, 1<<30, more))
	}
}

// Planted: the chunks' foreign key without its cascade; the limit on keys without More; the condition on
// expires_at left out of each statement.
func TestSweep_DeletesFilesWithTheirChunksAndExpiredRows(t *testing.T) {
	t.Parallel()
	storage, db := newPostgres(t)
	gone, kept := stageBytes(t, storage, make([]byte, 3<<20)), stageBytes(t, storage, make([]byte, 2<<20+1))
	mustExec(t, db, sqlExpire, gone.ID)
	workspace := uuid.New()
	for range 3 {
		mustExec(t, db, sqlInsertReservation, workspace, -1)
		mustExec(t, db, sqlInsertReservation, workspace, 60)
	}
	mustExec(t, db, sqlInsertKeys, workspace, -1, 2001)
	mustExec(t, db, sqlInsertKeys, uuid.New(), 60, 5)

	mustSweep(t, storage, pendinguploads.Swept{Expired: 1, ExpiredBytes: 3 << 20, More: true}) // more keys
	mustCount(t, db, "upload_keys", 6)
	mustSweep(t, storage, pendinguploads.Swept{})
	mustCount(t, db, "upload_keys", 5)
	mustCount(t, db, "upload_reservations", 3)
	mustCount(t, db, "pending_uploads", 1)
	mustCount(t, db, "pending_upload_chunks", 2)
	if _, err := storage.Get(t.Context(), kept.Workspace, kept.ID); err != nil {
		t.Error(err)
	}
}

// Rows that another transaction has locked are left for the next sweep: those of an acknowledgement, of
// another sweep and of an upload that takes a key again. Planted: SKIP LOCKED left out of each statement,
// and the lock with it, so that the renewed key is deleted.
func TestSweep_LeavesWhatIsLocked(t *testing.T) {
	t.Parallel()
	storage, db := newPostgres(t)
	locked, free := stageBytes(t, storage, []byte("hello")), stageBytes(t, storage, []byte("hello"))
	workspace := uuid.New()
	mustExec(t, db, sqlInsertKeys, workspace, -1, 2)
	mustExec(t, db, sqlInsertReservation, workspace, -1)
	for _, f := range []pendinguploads.File{locked, free} {
		mustExec(t, db, sqlExpire, f.ID)
	}
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() // after a commit it does nothing
	for _, c := range []struct {
		statement string
		args      []any
	}{
		{`SELECT FROM pending_uploads WHERE file_id = $1 FOR UPDATE`, []any{locked.ID}},
		{`SELECT FROM upload_reservations WHERE workspace_id = $1 FOR UPDATE`, []any{workspace}},
		{sqlRenewKey, []any{workspace}},
	} {
		if _, err := tx.Exec(c.statement, c.args...); err != nil {
			t.Fatal(err)
		}
	}
	mustSweep(t, storage, pendinguploads.Swept{Expired: 1, ExpiredBytes: 5})
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	mustCount(t, db, "upload_keys", 1)
	mustCount(t, db, "upload_reservations", 1)
	mustSweep(t, storage, pendinguploads.Swept{Expired: 1, ExpiredBytes: 5})
	mustCount(t, db, "upload_keys", 1)
	mustCount(t, db, "upload_reservations", 0)
}

// A platform that was killed during an upload leaves its reservation, which counts until it expires.
// Planted: expires_at left out of reserve_upload.
func TestReserve_AnOrphanedReservationExpires(t *testing.T) {
	t.Parallel()
	_, db := newPostgres(t)
	limits := testLimits
	limits.QuotaBytes = 15
	storage := pendinguploads.NewPostgres(db, db, &failingInbox{}, limits)
	workspace := uuid.New()
	mustExec(t, db, sqlInsertReservation, workspace, 60)
	mustExec(t, db, sqlInsertReservation, workspace, -1)
	_, err := storage.Stage(t.Context(), workspace, []pendinguploads.NewFile{newFile("a.txt", []byte("123456"))})
	var full *pendinguploads.QuotaError
	if !errors.As(err, &full) || *full != (pendinguploads.QuotaError{What: "bytes", Used: 10, Limit: 15}) {
		t.Errorf("%v, want the quota to be full with 10 of 15", err)
	}
	if want := "pendinguploads: quota of bytes exceeded: 10 of 15 used"; full.Error() != want {
		t.Errorf("%q, want %q", full, want)
	}
}

// Staging fails after it has used its reservation, because the inbox cannot be written. Planted: the
// reservation released before the rollback, which waits for its own lock and then leaves the reservation.
func TestReserve_IsReleasedAfterAFailureAtTheEnd(t *testing.T) {
	t.Parallel()
	_, db := newPostgres(t)
	limits := testLimits
	limits.QuotaFiles = 1
	inbox := &failingInbox{fail: true}
	storage := pendinguploads.NewPostgres(db, db, inbox, limits)
	workspace := uuid.New()
	files := func() []pendinguploads.NewFile { return []pendinguploads.NewFile{newFile("a.txt", largeBytes)} }
	start := time.Now()
	if _, err := storage.Stage(t.Context(), workspace, files()); !errors.Is(err, errDatabase) {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("to fail took %s", took)
	}
	mustCount(t, db, "upload_reservations", 0)
	inbox.fail = false
	if _, err := storage.Stage(t.Context(), workspace, files()); err != nil {
		t.Error(err)
	}
	mustCount(t, db, "upload_reservations", 0)
}

// Planted: a reservation used up to its last moment, or one that does not exist.
func TestReserve_MustLastToTheCommit(t *testing.T) {
	t.Parallel()
	_, db := newPostgres(t)
	limits := testLimits
	limits.QuotaFiles = 1
	for left, want := range map[string]bool{"6 minutes": true, "4 minutes": false, "-1 minute": false} {
		storage := pendinguploads.NewPostgres(db, db, &failingInbox{}, limits)
		workspace := uuid.New()
		f := newFile("a.txt", largeBytes)
		f.Content = &sideEffect{Reader: f.Content, do: func() {
			mustExec(t, db, fmt.Sprintf(`UPDATE upload_reservations SET expires_at = now() + interval '%s' WHERE workspace_id = $1`, left), workspace)
		}}
		staged, err := storage.Stage(t.Context(), workspace, []pendinguploads.NewFile{f})
		if (err == nil) != want || (staged != nil) != want {
			t.Errorf("%s left: %d files, %v", left, len(staged), err)
		}
	}
	mustCount(t, db, "pending_uploads", 1)
	mustCount(t, db, "upload_reservations", 0)
}

// Planted: the statement_timeout not restored for the next user of the connection, or its prepared
// statements deallocated; VACUUM in a transaction.
func TestReclaim_FreesSpaceAndRestoresTheConnection(t *testing.T) {
	t.Parallel()
	limited := pgtest.New(t) + " statement_timeout=54321"
	pools, err := database.Open(t.Context(), database.Config{URL: limited, QueryConns: 2, FileConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pools.Close() })
	db := pools.Queries // with prepared statements, as the platform has them
	db.SetMaxOpenConns(1)
	for _, table := range []string{"pending_uploads", "pending_upload_chunks"} { // autovacuum does not reclaim it
		mustExec(t, db, `ALTER TABLE `+table+` SET (autovacuum_enabled = false, toast.autovacuum_enabled = false)`)
	}
	storage := pendinguploads.NewPostgres(db, db, activity.New(db), testLimits)
	for range 3 {
		f := stageBytes(t, storage, make([]byte, 2<<20))
		mustExec(t, db, sqlExpire, f.ID)
	}
	mustSweep(t, storage, pendinguploads.Swept{Expired: 3, ExpiredBytes: 6 << 20})
	size := func() (n int64) {
		t.Helper()
		row := db.QueryRowContext(t.Context(), `SELECT pg_total_relation_size('pending_uploads') + pg_total_relation_size('pending_upload_chunks')`)
		if err := row.Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if before := size(); before < 6<<20 {
		t.Fatalf("only %d bytes", before)
	}
	other := pgtest.Open(t, limited)
	other.SetMaxOpenConns(1)
	mustExec(t, other, `SELECT pg_advisory_lock(20260601, 1)`) // another replica is reclaiming
	if err := storage.Reclaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := size(); after < 6<<20 {
		t.Errorf("only %d bytes are left", after)
	}
	mustExec(t, other, `SELECT pg_advisory_unlock(20260601, 1)`)
	const ours = `SELECT $1::int`
	if err := db.QueryRowContext(t.Context(), ours, 1).Scan(new(int)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds the lock free
		if err := storage.Reclaim(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// Within a transaction, database/sql cannot switch to another connection if this one has lost the
	// statement.
	if tx, err := db.BeginTx(t.Context(), nil); err != nil {
		t.Error(err)
	} else if err := errors.Join(tx.QueryRowContext(t.Context(), ours, 1).Scan(new(int)), tx.Rollback()); err != nil {
		t.Errorf("a statement that was prepared before: %v", err)
	}
	mustExec(t, other, `SELECT 1 / pg_try_advisory_lock(20260601, 1)::int`)
	if after := size(); after > 1<<20 {
		t.Errorf("%d bytes are left", after)
	}
	var timeout string
	if err := db.QueryRowContext(t.Context(), `SHOW statement_timeout`).Scan(&timeout); err != nil || timeout != "54321ms" {
		t.Errorf("a statement may take %s now, %v", timeout, err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := storage.Reclaim(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want the context's error", err)
	}
}
