package pendinguploads_test

import (
	"context"
	"database/sql"
	"strings"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// insertMany inserts n files of 10 bytes that were staged $2 seconds ago.
const insertMany = `INSERT INTO pending_uploads (workspace_id, content, size_bytes, filename, mimetype, sha256, created_at, expires_at, acked_at)
SELECT gen_random_uuid(), '0123456789', 10, 'a', 'text/plain', sha256(''), now() - $2 * interval '1 second',
	now() + (86400 - $2) * interval '1 second', CASE WHEN $3 THEN now() END FROM generate_series(1, $1)`

func insert(t *testing.T, db *sql.DB, n, secondsAgo int, acked bool) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), insertMany, n, secondsAgo, acked); err != nil {
		t.Fatal(err)
	}
}

// Planted: acked or expired files counted; the age of the newest.
func TestReadBacklog_CountsUnacknowledgedFiles(t *testing.T) {
	t.Parallel()
	db := pgtest.Open(t, pgtest.New(t))
	b, err := pendinguploads.ReadBacklog(t.Context(), db)
	if err != nil || b != (pendinguploads.Backlog{}) {
		t.Errorf("nothing: %+v, %v", b, err)
	}
	insert(t, db, 2, 60, false)
	insert(t, db, 1, 3600, false)
	insert(t, db, 5, 7200, true)
	insert(t, db, 7, 86401, false)
	b, err = pendinguploads.ReadBacklog(t.Context(), db)
	if err != nil || b.Files != 3 || b.Bytes != 30 || b.Oldest < time.Hour || b.Oldest > time.Hour+time.Minute {
		t.Errorf("%+v, %v, want 3 files, 30 bytes, an hour", b, err)
	}
}

// Each replica reads it every ten seconds, however many acknowledged files are not swept yet. Planted:
// acknowledged files counted too and subtracted; the oldest found by min(created_at), which reads all of
// them.
func TestReadBacklog_CostGrowsWithTheBacklogOnly(t *testing.T) {
	t.Parallel()
	db := pgtest.Open(t, pgtest.New(t))
	db.SetMaxOpenConns(1) // VACUUM and ANALYZE are seen at once
	insert(t, db, 20_000, 60, true)
	insert(t, db, 5_000, 60, false)
	for _, statement := range []string{`VACUUM ANALYZE pending_uploads`} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	count, oldest := pendinguploads.BacklogStatements()
	for statement, want := range map[string][]string{
		count:  {"Scan using pending_uploads_", "rows=5000"},
		oldest: {"Limit", "Index Scan using pending_uploads_expiry", "rows=1"},
	} {
		plan := explain(t, db, statement)
		for _, text := range want {
			if !strings.Contains(plan, text) {
				t.Errorf("%s: no %q in\n%s", statement, text, plan)
			}
		}
		if strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Sort") {
			t.Errorf("%s:\n%s", statement, plan)
		}
	}
}

func explain(t *testing.T, db *sql.DB, statement string) string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `EXPLAIN (ANALYZE, COSTS off) `+statement)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var plan strings.Builder
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		plan.WriteString(line + "\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return plan.String()
}

func TestReadBacklog_ReportsADatabaseThatFails(t *testing.T) {
	t.Parallel()
	for failing := range 2 {
		db, mock, err := sqlmock.New()
		if err != nil {
			t.Fatal(err)
		}
		if failing == 0 {
			mock.ExpectQuery("SELECT count").WillReturnError(errDatabase)
		} else {
			mock.ExpectQuery("SELECT count").WillReturnRows(sqlmock.NewRows([]string{"", ""}).AddRow(1, 1))
			mock.ExpectQuery("SELECT extract").WillReturnError(errDatabase)
		}
		if b, err := pendinguploads.ReadBacklog(context.Background(), db); err == nil || b != (pendinguploads.Backlog{}) {
			t.Errorf("%d: %+v, %v", failing, b, err)
		}
		if err := mock.ExpectationsWereMet(); err != nil {
			t.Error(err)
		}
		db.Close()
	}
}
