package activity_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/google/uuid"
	"github.com/lib/pq"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
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
SELECT pruned, more FROM prune_inboxes($1 * interval '1 microsecond', $2 * interval '1 microsecond', $3, $4)`

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
	// Its inbox learns of it by sqlFacts, because rows do not age that way.
	sqlAge = `UPDATE activity_logs SET created_at = created_at - $2 * interval '1 day' WHERE workspace_id = $1 AND summary = $3`

	sqlFacts = `UPDATE inbox_pruning p SET oldest_at = l.created_at FROM activity_logs l
		WHERE l.workspace_id = p.workspace_id AND l.seq = p.oldest_seq`

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
	mustExec(t, db, sqlFacts)
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

// Planted: more not set; SKIP LOCKED missing on the rows, so that the run waits for the lock; the locked row taken for the
// first that stays; the inbox with a locked row found again at once, without end.
func TestPrune_PassesOverALockedRow(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	workspace := uuid.New()
	record(t, in, workspace, message("first"))
	mustExec(t, db, `INSERT INTO activity_logs (workspace_id, seq, activity_type, created_at)
		SELECT $1, n, 'a2a_receive', now() - interval '31 days' FROM generate_series(2, 2501) n`, workspace)
	mustExec(t, db, `UPDATE activity_counters SET last_seq = 2501`)
	mustExec(t, db, `UPDATE activity_logs SET created_at = now() - interval '31 days'`)
	record(t, in, workspace, message("last"))
	mustExec(t, db, sqlFacts)
	if n, more, err := in.Prune(t.Context(), retention, limit); err != nil || n != 1000 || !more {
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
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // a run that waits for the lock never ends
	defer cancel()
	if n, err := pruneAll(ctx, db, 1000, 500); err != nil || n != 1500 {
		t.Errorf("%d rows were pruned (%v), want all but the one locked", n, err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if n, more, err := in.Prune(t.Context(), retention, limit); err != nil || n != 0 || more {
		t.Errorf("%d rows, more %t, %v; the locked row's turn is a minute later", n, more, err)
	}
	mustExec(t, db, `UPDATE inbox_pruning SET oldest_at = oldest_at - interval '61 seconds'`)
	mustPrune(t, in, 1)
	wantSummaries(t, read(t, in, workspace, activity.Query{}), "last")
}

// pruneAll prunes in batches of that size until there is no more.
func pruneAll(ctx context.Context, db *sql.DB, rows, inboxes int) (pruned int, err error) {
	for more := true; more; {
		var n int
		err := db.QueryRowContext(ctx, prune, retention.Microseconds(), limit.Microseconds(), rows, inboxes).Scan(&n, &more)
		if err != nil {
			return pruned, err
		}
		if pruned += n; n > rows {
			return pruned, fmt.Errorf("a batch of %d rows, want at most %d", n, rows)
		}
	}
	return pruned, nil
}

// sqlDefinition is which rows are to be pruned, in words: older than the retention, and read past or older than the limit.
const sqlDefinition = `
SELECT l.workspace_id || ' ' || l.seq AS row, coalesce(
    l.created_at < now() - interval '7 days' AND l.seq < r.read_seq OR l.created_at < now() - interval '30 days', false) AS prunable
FROM activity_logs l LEFT JOIN activity_readers r USING (workspace_id)`

// Workspaces write and read, days pass, and batches of all sizes are pruned: after each round, what the definition names
// is gone and nothing else, and the inboxes that a sweep looks at are those that have something to prune.
// Planted: the trigger on either table missing; its oldest_read always false; oldest_read with <=; a stop at the first
// row that is read; oldest_at or oldest_seq left as it was; the loop over unread inboxes missing.
func TestPrune_DeletesWhatTheDefinitionNames(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	random := rand.New(rand.NewPCG(13, 4))
	workspaces := make([]uuid.UUID, 12)
	for i := range workspaces {
		workspaces[i] = uuid.New()
	}
	rows := func() (all, prunable map[string]bool) {
		t.Helper()
		all, prunable = map[string]bool{}, map[string]bool{}
		found, err := db.QueryContext(t.Context(), sqlDefinition)
		if err != nil {
			t.Fatal(err)
		}
		defer found.Close()
		for found.Next() {
			var row string
			var is bool
			if err := found.Scan(&row, &is); err != nil {
				t.Fatal(err)
			}
			if all[row] = true; is {
				prunable[row] = true
			}
		}
		if err := found.Err(); err != nil {
			t.Fatal(err)
		}
		return all, prunable
	}
	total := 0
	for round := range 60 {
		for range random.IntN(12) {
			workspace := workspaces[random.IntN(len(workspaces))]
			appendIn(t, in, db, workspace, (*sql.Tx).Commit, slices.Repeat([]activity.Entry{message("x")}, 1+random.IntN(5))...)
		}
		for range random.IntN(6) {
			workspace := workspaces[random.IntN(len(workspaces))]
			if left := read(t, in, workspace, activity.Query{Oldest: true, Limit: 500}); len(left) > 0 {
				read(t, in, workspace, reader(left[random.IntN(len(left))]))
			}
		}
		mustExec(t, db, fmt.Sprintf(`WITH d AS (SELECT interval '%d hours' AS passed),
			a AS (UPDATE activity_logs SET created_at = created_at - passed FROM d), b AS (UPDATE activity_readers SET noted_at = noted_at - passed FROM d)
			UPDATE inbox_pruning SET oldest_at = oldest_at - passed FROM d`, 1+random.IntN(72)))

		before, prunable := rows()
		if n, err := in.Prunable(t.Context(), retention, limit); err != nil || n != len(prunable) {
			t.Fatalf("round %d: %d rows can be pruned (%v), want %d", round, n, err, len(prunable))
		}
		n, err := pruneAll(t.Context(), db, 1+random.IntN(8), 1+random.IntN(5))
		if err != nil || n != len(prunable) {
			t.Fatalf("round %d: %d rows were pruned (%v), want %d", round, n, err, len(prunable))
		}
		total += n
		after, _ := rows()
		maps.DeleteFunc(before, func(row string, _ bool) bool { return prunable[row] })
		if !maps.Equal(after, before) {
			t.Fatalf("round %d: left are %v, want %v", round, after, before)
		}
		var wrong int
		if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM inbox_pruning p JOIN activity_logs l USING (workspace_id) LEFT JOIN activity_readers r USING (workspace_id)
			WHERE l.seq < p.oldest_seq OR l.created_at < p.oldest_at OR p.oldest_seq = l.seq AND p.oldest_read <> coalesce(l.seq < r.read_seq, false)`).Scan(&wrong); err != nil || wrong != 0 {
			t.Fatalf("round %d: %d rows are not what inbox_pruning says (%v)", round, wrong, err)
		}
		// The next batch begins after what is gone.
		if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM unnest($1::text[]) gone JOIN inbox_pruning p
			ON p.workspace_id = split_part(gone, ' ', 1)::uuid AND p.oldest_seq <= split_part(gone, ' ', 2)::bigint`,
			pq.Array(slices.Collect(maps.Keys(prunable)))).Scan(&wrong); err != nil || wrong != 0 {
			t.Fatalf("round %d: inbox_pruning is before %d rows that are gone (%v)", round, wrong, err)
		}
	}
	if total < 200 {
		t.Errorf("%d rows were pruned in all; the test tries nothing", total)
	}
}

// Planted: SKIP LOCKED missing on the inboxes, with which they wait for each other; more only if the batch is full, by which
// both may end early; LIMIT before the lock.
func TestPrune_ConcurrentRunsShareTheWorkAndFinishIt(t *testing.T) {
	t.Parallel()
	_, db := newInbox(t)
	mustExec(t, db, `INSERT INTO activity_counters SELECT gen_random_uuid(), 40 FROM generate_series(1, 60)`)
	mustExec(t, db, `INSERT INTO activity_logs (workspace_id, seq, activity_type, created_at)
		SELECT workspace_id, n, 'a2a_receive', now() - interval '31 days' FROM activity_counters, generate_series(1, 40) n`)
	mustExec(t, db, sqlFacts)
	var g errgroup.Group
	var pruned [3]int
	for i := range pruned {
		g.Go(func() (err error) { pruned[i], err = pruneAll(t.Context(), db, 70, 10); return err })
	}
	if err := g.Wait(); err != nil || pruned[0]+pruned[1]+pruned[2] != 60*40 {
		t.Errorf("%v rows were pruned (%v), want %d together", pruned, err, 60*40)
	}

	// One run has inboxes locked: the other takes those that it does not have.
	mustExec(t, db, `UPDATE inbox_pruning SET oldest_seq = 1, oldest_at = '-infinity'`)
	mustExec(t, db, `INSERT INTO activity_logs (workspace_id, seq, activity_type, created_at)
		SELECT workspace_id, 1, 'a2a_receive', now() - interval '31 days' FROM activity_counters`)
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() // it is not to last
	var first int
	var more bool
	if err := tx.QueryRow(prune, retention.Microseconds(), limit.Microseconds(), 50, 20).Scan(&first, &more); err != nil || first != 20 || !more {
		t.Fatalf("%d rows, more %t, %v; want 20 and more", first, more, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // a run that waits for the lock never ends
	defer cancel()
	if n, err := pruneAll(ctx, db, 50, 20); err != nil || n != 39 { // it has also the one locked by which it knows that there is more
		t.Errorf("%d rows were pruned beside it (%v), want 39", n, err)
	}
}

// A batch has looked at the read position, and the workspace moves on before the batch commits. Planted: the trigger
// writing only if oldest_read is false.
func TestPrune_ReadPositionThatMovesDuringABatchCounts(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	workspace, rows := newAged(t, in, db, 8, 8, 8)
	read(t, in, workspace, reader(rows[1]))
	mustExec(t, db, sqlMinuteLater)
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() // after a commit it does nothing
	var n int
	var more bool
	if err := tx.QueryRow(prune, retention.Microseconds(), limit.Microseconds(), 10, 10).Scan(&n, &more); err != nil || n != 1 || more {
		t.Fatalf("%d rows, more %t, %v; want the first", n, more, err)
	}
	moved := make(chan error, 1)
	go func() {
		_, err := in.Read(t.Context(), workspace, reader(rows[2]))
		moved <- err
	}()
	for waits := false; !waits && len(moved) == 0; {
		if err := db.QueryRowContext(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waits); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tx.Commit(), <-moved); err != nil {
		t.Fatal(err)
	}
	mustPrune(t, in, 1)
}

// What a batch reads is what it deletes and a row for each inbox that is due, by index, however large the log has become since
// the session made its plans. Planted: the function's settings missing; the rows read without an end.
func TestPrune_ReadsNoMoreThanItDeletes(t *testing.T) {
	t.Parallel()
	dsn := pgtest.New(t)
	db, own := pgtest.Open(t, dsn), pgtest.Open(t, dsn)
	own.SetMaxOpenConns(1)
	runPrune := func(wantPruned int, mostOf map[string]int64) {
		t.Helper()
		tx, err := own.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback() // after a commit it does nothing
		count := func(table string) (scans, reads int64) {
			t.Helper()
			err := tx.QueryRow(`SELECT seq_scan, coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables WHERE relname = $1`, table).Scan(&scans, &reads)
			if err != nil {
				t.Fatal(err)
			}
			return scans, reads
		}
		before := map[string][2]int64{}
		for table := range mostOf {
			scans, reads := count(table)
			before[table] = [2]int64{scans, reads}
		}
		var n int
		var more bool
		if err := tx.QueryRow(prune, retention.Microseconds(), limit.Microseconds(), 1000, 500).Scan(&n, &more); err != nil || n != wantPruned || more {
			t.Errorf("%d rows, more %t, %v; want %d", n, more, err, wantPruned)
		}
		for table, most := range mostOf {
			scans, reads := count(table)
			if scans, reads = scans-before[table][0], reads-before[table][1]; scans > 0 || reads > most {
				t.Errorf("pruning %d rows reads %s whole %d times and %d rows of it, want at most %d", n, table, scans, reads, most)
			}
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	fill := func(inboxes, rows int, old string) {
		t.Helper()
		mustExec(t, db, `WITH c AS (INSERT INTO activity_counters SELECT gen_random_uuid(), $2 FROM generate_series(1, $1) RETURNING workspace_id),
			l AS (INSERT INTO activity_logs (workspace_id, seq, activity_type, created_at) SELECT workspace_id, n, 'a2a_receive',
				now() - CASE WHEN `+old+` THEN interval '8 days' ELSE interval '1 day' END FROM c, generate_series(1, $2) n)
			INSERT INTO activity_readers SELECT workspace_id, $2, now() FROM c`, inboxes, rows)
		mustExec(t, db, `UPDATE inbox_pruning p SET oldest_at = l.created_at, oldest_read = true FROM activity_logs l WHERE l.workspace_id = p.workspace_id AND l.seq = 1`)
	}
	for range 8 { // until it has plans for all values
		fill(1, 4, "n < 3")
		runPrune(2, nil)
	}
	mustExec(t, db, `DELETE FROM activity_logs`)
	fill(3000, 10, "false")
	fill(10, 10, "n = 1")
	fill(1, 20_000, "n <= 10")
	runPrune(20, map[string]int64{"activity_logs": 3 * (20 + 11), "inbox_pruning": 2 * 11})
	runPrune(0, map[string]int64{"activity_logs": 0, "inbox_pruning": 0})
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
	for n, more := range map[int]bool{999: true, 1000: false} {
		mock.ExpectQuery(prune).WithArgs(sevenDays, thirtyDays, 1000, 500).WillReturnRows(sqlmock.NewRows([]string{"pruned", "more"}).AddRow(n, more))
		if got, m, err := in.Prune(t.Context(), retention, limit); err != nil || got != n || m != more {
			t.Errorf("%d rows: %d, more %t, %v", n, got, m, err)
		}
	}
	mock.ExpectQuery(prune).WillReturnError(errDatabase)
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
func TestPrunable_ReadsTheLogByIndexOnly(t *testing.T) {
	t.Parallel()
	_, db := newInbox(t)
	mustExec(t, db, `INSERT INTO activity_counters SELECT gen_random_uuid(), 200 FROM generate_series(1, 300)`)
	mustExec(t, db, `INSERT INTO activity_readers SELECT workspace_id, 10, now() FROM activity_counters LIMIT 150`)
	mustExec(t, db, `INSERT INTO activity_logs (workspace_id, seq, activity_type, created_at)
		SELECT workspace_id, n, 'a2a_receive', now() - (200 - n) * interval '1 hour' FROM activity_counters, generate_series(1, 200) n`)
	mustExec(t, db, `ANALYZE`)
	for name, statement := range map[string]string{"prunable": countPrunable} {
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
