package activity_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/platform/internal/activity"
)

// The statements that prune and record the read position, pinned token by token.
const (
	seqAndNoteOf = `SELECT l.seq, c.last_seq, coalesce(r.read_seq < l.seq AND r.noted_at < now() - interval '1 minute', true) ` +
		`FROM activity_logs l LEFT JOIN activity_counters c USING (workspace_id) LEFT JOIN activity_readers r USING (workspace_id) ` +
		`WHERE l.id = $1 AND l.workspace_id = $2`

	noteRead = `
INSERT INTO activity_readers AS r (workspace_id, read_seq, noted_at) VALUES ($1, $2, now())
ON CONFLICT (workspace_id) DO UPDATE SET read_seq = excluded.read_seq, noted_at = excluded.noted_at
WHERE r.read_seq < excluded.read_seq AND r.noted_at < now() - interval '1 minute'`

	prune = `
DELETE FROM activity_logs WHERE id = ANY(ARRAY(
    SELECT id FROM activity_logs WHERE id = ANY(ARRAY(
        SELECT l.id FROM activity_counters c LEFT JOIN activity_readers r USING (workspace_id) CROSS JOIN LATERAL (
            SELECT id FROM activity_logs
            WHERE workspace_id = c.workspace_id AND created_at < now() - $1 * interval '1 microsecond'
            AND (seq < r.read_seq OR created_at < now() - $2 * interval '1 microsecond')
            ORDER BY created_at LIMIT $3
        ) l LIMIT $3
    )) FOR UPDATE SKIP LOCKED
))`

	countPrunable = `
SELECT count(*) FROM (
    SELECT l.id FROM activity_counters c LEFT JOIN activity_readers r USING (workspace_id) CROSS JOIN LATERAL (
        SELECT id FROM activity_logs
        WHERE workspace_id = c.workspace_id AND created_at < now() - $1 * interval '1 microsecond'
        AND (seq < r.read_seq OR created_at < now() - $2 * interval '1 microsecond')
        ORDER BY created_at LIMIT $3
    ) l LIMIT $3
) old`
)

const (
	day       = 24 * time.Hour
	retention = 7 * day
	limit     = 30 * day

	// sqlAge makes the row with that summary older by $2 days.
	sqlAge = `UPDATE activity_logs SET created_at = created_at - $2 * interval '1 day' WHERE workspace_id = $1 AND summary = $3`

	sqlNote = `SELECT coalesce((SELECT read_seq FROM activity_readers WHERE workspace_id = $1), 0)`

	sqlMinuteLater = `UPDATE activity_readers SET noted_at = noted_at - interval '61 seconds'`
)

// reader returns the query of a workspace that has handled everything up to r.
func reader(r activity.Row) activity.Query {
	q := after(r)
	q.Reader = true
	return q
}

func mustExec(t *testing.T, db *sql.DB, statement string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// newAged records a row for each of days, with that age and with its index from 1 as the summary.
func newAged(t *testing.T, in *activity.Inbox, db *sql.DB, days ...int) (uuid.UUID, []activity.Row) {
	t.Helper()
	workspace := uuid.New()
	for i, age := range days {
		record(t, in, workspace, message(fmt.Sprint(i+1)))
		mustExec(t, db, sqlAge, workspace, age, fmt.Sprint(i+1))
	}
	return workspace, read(t, in, workspace, activity.Query{Oldest: true})
}

func mustPrune(t *testing.T, in *activity.Inbox, want int) {
	t.Helper()
	if n, err := in.Prunable(t.Context(), retention, limit); err != nil || n != want {
		t.Errorf("%d rows can be pruned (%v), want %d", n, err, want)
	}
	if n, more, err := in.Prune(t.Context(), retention, limit); err != nil || n != want || more {
		t.Errorf("%d rows were pruned, more %t, %v; want %d", n, more, err, want)
	}
	if n, more, err := in.Prune(t.Context(), retention, limit); err != nil || n != 0 || more {
		t.Errorf("%d rows were pruned again, more %t, %v", n, more, err)
	}
}

// Planted: either condition on the age missing; seq not compared, or with <=, which deletes the cursor
// of a workspace without rows for a week; the read position of one workspace applied to all.
func TestPrune_DeletesOldReadRowsAndVeryOldRows(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	never, _ := newAged(t, in, db, 31, 29, 29, 8, 6)
	behind, rows := newAged(t, in, db, 31, 20, 8, 8, 8)
	read(t, in, behind, reader(rows[2]))
	all, rows := newAged(t, in, db, 20, 9, 8)
	read(t, in, all, reader(rows[2]))
	recent, rows := newAged(t, in, db, 8, 6, 0)
	read(t, in, recent, reader(rows[2]))

	mustPrune(t, in, 1+2+2+1)
	for workspace, want := range map[uuid.UUID]string{never: "2 3 4 5", behind: "3 4 5", all: "3", recent: "2 3"} {
		if got := strings.Join(summaries(read(t, in, workspace, activity.Query{Oldest: true})), " "); got != want {
			t.Errorf("left are %q, want %q", got, want)
		}
	}
	// A reader continues after its cursor although all rows before it were pruned.
	cursor := rows[2]
	record(t, in, recent, message("new"))
	wantSummaries(t, read(t, in, recent, reader(cursor)), "new")
}

// A limit shorter than the retention does not shorten the retention.
func TestPrune_KeepsUnreadRowsForTheRetentionAtLeast(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	newAged(t, in, db, 40, 20)
	if n, _, err := in.Prune(t.Context(), 60*day, limit); err != nil || n != 0 {
		t.Errorf("%d rows were pruned, %v", n, err)
	}
	if n, err := in.Prunable(t.Context(), 60*day, limit); err != nil || n != 0 {
		t.Errorf("%d rows can be pruned, %v", n, err)
	}
	if n, _, err := in.Prune(t.Context(), 0, 0); err != nil || n != 2 {
		t.Errorf("%d rows were pruned, %v; want both", n, err)
	}
}

// A workspace that has not polled for a month gets ErrCursorGone, and then reads all remaining rows
// from the oldest on.
func TestPrune_PrunedCursorIsGone(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	workspace, rows := newAged(t, in, db, 40, 31, 29, 1)
	read(t, in, workspace, reader(rows[1]))
	mustPrune(t, in, 2)
	if _, err := in.Read(t.Context(), workspace, reader(rows[1])); !errors.Is(err, activity.ErrCursorGone) {
		t.Errorf("%v, want ErrCursorGone", err)
	}
	wantSummaries(t, read(t, in, workspace, activity.Query{Oldest: true}), "3", "4")
}

// Planted: more not set; SKIP LOCKED missing, so that the second run waits for the first.
func TestPrune_BatchesAreSharedByConcurrentRuns(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	workspace := uuid.New()
	record(t, in, workspace, message("first"))
	mustExec(t, db, `INSERT INTO activity_logs (workspace_id, seq, activity_type, created_at)
		SELECT $1, n, 'a2a_receive', now() - interval '31 days' FROM generate_series(2, 2501) n`, workspace)
	n, more, err := in.Prune(t.Context(), retention, limit)
	if err != nil || n != 1000 || !more {
		t.Fatalf("%d rows, more %t, %v; want 1000 and more", n, more, err)
	}

	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() // after a commit it does nothing
	if _, err := tx.Exec(`SELECT FROM activity_logs WHERE seq = 1500 FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // a run that waits for the lock never ends
	defer cancel()
	var pruned atomic.Int64
	var g errgroup.Group
	for range 4 {
		g.Go(func() error {
			for {
				n, more, err := in.Prune(ctx, retention, limit)
				pruned.Add(int64(n))
				if err != nil || !more {
					return err
				}
			}
		})
	}
	if err := g.Wait(); err != nil || pruned.Load() < 998 || pruned.Load() > 1499 { // a batch that skipped a locked row is the last
		t.Errorf("%d rows were pruned (%v)", pruned.Load(), err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	rest, err := in.Prunable(t.Context(), retention, limit)
	if err != nil || rest+int(pruned.Load()) != 1500 {
		t.Errorf("%d and %d rows, %v", pruned.Load(), rest, err)
	}
	mustPrune(t, in, rest)
	wantSummaries(t, read(t, in, workspace, activity.Query{}), "first")
}

// Planted: Reader ignored; a position recorded for an unknown cursor; a position that goes back; a
// write at each poll.
func TestRead_RecordsTheReadPosition(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	workspace, rows := newAged(t, in, db, 0, 0, 0, 0)
	wantNote := func(want int64, what string) {
		t.Helper()
		var got int64
		if err := db.QueryRowContext(t.Context(), sqlNote, workspace).Scan(&got); err != nil || got != want {
			t.Errorf("%s: recorded %d (%v), want %d", what, got, err, want)
		}
	}
	read(t, in, workspace, after(rows[3]))
	wantNote(0, "the canvas has read")
	read(t, in, workspace, activity.Query{Oldest: true, Reader: true})
	wantNote(0, "without a cursor")
	if _, err := in.Read(t.Context(), uuid.New(), reader(rows[3])); !errors.Is(err, activity.ErrCursorGone) {
		t.Fatal(err)
	}
	wantNote(0, "another workspace with this one's cursor")

	if wantSummaries(t, read(t, in, workspace, reader(rows[1])), "3", "4"); t.Failed() {
		return
	}
	wantNote(2, "the first time")
	read(t, in, workspace, reader(rows[2]))
	wantNote(2, "within a minute")
	mustExec(t, db, sqlMinuteLater)
	read(t, in, workspace, after(rows[3]))
	wantNote(2, "the canvas, a minute later")
	read(t, in, workspace, reader(rows[0]))
	wantNote(2, "from further back")
	read(t, in, workspace, reader(rows[2]))
	wantNote(3, "a minute later")
}

// Concurrent polls may all find that a record is due, and run the statement one after the other.
// Planted: either half of its condition missing.
func TestRead_ConcurrentPollsRecordOnce(t *testing.T) {
	t.Parallel()
	_, db := newInbox(t)
	workspace := uuid.New()
	for i, c := range []struct {
		later bool
		seq   int
		want  int
	}{{false, 5, 5}, {false, 6, 5}, {false, 4, 5}, {true, 4, 5}, {true, 5, 5}, {true, 6, 6}, {false, 7, 6}, {true, 7, 7}} {
		if c.later {
			mustExec(t, db, sqlMinuteLater)
		}
		mustExec(t, db, noteRead, workspace, c.seq)
		var got int
		if err := db.QueryRowContext(t.Context(), sqlNote, workspace).Scan(&got); err != nil || got != c.want {
			t.Errorf("statement %d with %d: recorded is %d (%v), want %d", i+1, c.seq, got, err, c.want)
		}
	}
}

// The read position is for pruning; a poll does not need it.
func TestRead_SucceedsWhenTheReadPositionIsNotRecorded(t *testing.T) {
	t.Parallel()
	in, mock := newMocked(t)
	workspace, last := uuid.New(), uuid.New()
	q := activity.Query{After: validUUID(last), Limit: 7, Reader: true}
	for _, fails := range []error{nil, errDatabase} {
		mock.ExpectQuery(seqAndNoteOf).WithArgs(last, workspace).WillReturnRows(cursorAt(41, 41, true))
		mock.ExpectExec(noteRead).WithArgs(workspace, 41).WillReturnResult(sqlmock.NewResult(0, 1)).WillReturnError(fails)
		if _, err := in.Read(t.Context(), workspace, q); err != nil {
			t.Error(err)
		}
	}
	mock.ExpectQuery(seqAndNoteOf).WithArgs(last, workspace).WillReturnRows(cursorAt(41, 41, false))
	if _, err := in.Read(t.Context(), workspace, q); err != nil {
		t.Error(err)
	}

	old, mock := newMocked(t)
	old.WithoutReaders()
	mock.ExpectQuery(seqOf).WithArgs(last, workspace).WillReturnRows(cursorAt(41, 41, false))
	if _, err := old.Read(t.Context(), workspace, q); err != nil {
		t.Error(err)
	}
}

func TestPrune_Statements(t *testing.T) {
	t.Parallel()
	in, mock := newMocked(t)
	const sevenDays, thirtyDays = int64(604_800_000_000), int64(2_592_000_000_000)
	for n, more := range map[int64]bool{999: false, 1000: true} {
		mock.ExpectExec(prune).WithArgs(sevenDays, thirtyDays, 1000).WillReturnResult(sqlmock.NewResult(0, n))
		if got, m, err := in.Prune(t.Context(), retention, limit); err != nil || got != int(n) || m != more {
			t.Errorf("%d rows: %d, more %t, %v", n, got, m, err)
		}
	}
	mock.ExpectExec(prune).WillReturnError(errDatabase)
	if _, _, err := in.Prune(t.Context(), retention, limit); !errors.Is(err, errDatabase) {
		t.Errorf("%v, want the database's error", err)
	}
	mock.ExpectQuery(countPrunable).WithArgs(sevenDays, thirtyDays, int64(1)<<40).WillReturnRows(sqlmock.NewRows([]string{"n"}).AddRow(5))
	if n, err := in.Prunable(t.Context(), retention, limit); err != nil || n != 5 {
		t.Errorf("%d, %v", n, err)
	}
	mock.ExpectQuery(countPrunable).WillReturnError(errDatabase)
	if _, err := in.Prunable(t.Context(), retention, limit); !errors.Is(err, errDatabase) {
		t.Errorf("%v, want the database's error", err)
	}
}

// The log is long, and few of its rows can be pruned. Planted: a join instead of LATERAL.
func TestPrune_ReadsTheLogByIndexOnly(t *testing.T) {
	t.Parallel()
	_, db := newInbox(t)
	mustExec(t, db, `INSERT INTO activity_counters SELECT gen_random_uuid(), 200 FROM generate_series(1, 300)`)
	mustExec(t, db, `INSERT INTO activity_readers SELECT workspace_id, 10, now() FROM activity_counters LIMIT 150`)
	mustExec(t, db, `INSERT INTO activity_logs (workspace_id, seq, activity_type, created_at)
		SELECT workspace_id, n, 'a2a_receive', now() - (200 - n) * interval '1 hour' FROM activity_counters, generate_series(1, 200) n`)
	mustExec(t, db, `ANALYZE`)
	for name, statement := range map[string]string{"prune": prune, "prunable": countPrunable} {
		var plan []byte
		row := db.QueryRowContext(t.Context(), `EXPLAIN (FORMAT JSON) `+statement, retention.Microseconds(), limit.Microseconds(), 1000)
		if err := row.Scan(&plan); err != nil {
			t.Fatal(err)
		}
		var parsed any
		if err := json.Unmarshal(plan, &parsed); err != nil {
			t.Fatal(err)
		}
		seen := 0
		walk(parsed, func(node map[string]any) {
			if node["Relation Name"] != "activity_logs" || node["Node Type"] == "ModifyTable" {
				return
			}
			seen++
			if kind := node["Node Type"]; kind == "Seq Scan" {
				t.Errorf("%s: %s of the log:\n%s", name, kind, plan)
			}
		})
		if seen == 0 {
			t.Errorf("%s: the plan does not read the log:\n%s", name, plan)
		}
	}
}

// walk visits every node of a plan.
func walk(v any, visit func(map[string]any)) {
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			walk(item, visit)
		}
	case map[string]any:
		visit(v)
		for _, item := range v {
			walk(item, visit)
		}
	}
}
