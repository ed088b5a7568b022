package activity_test

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

// TestCursor_MissesNoRowUnderConcurrentWriters tests the promise of the package: concurrent rows of
// files and messages, some commits delayed and some rolled back, and pollers that start before the
// first row.
func TestCursor_MissesNoRowUnderConcurrentWriters(t *testing.T) {
	t.Parallel()
	const rowsEach = 469
	l := newLoad(t, pgtest.New(t), rowsEach)
	for i, got := range l.run(t, inboxFeed{activity.New(l.db)}) {
		t.Logf("%d pollers with page size %d: %s", loadWorkspaces, pageSizes[i], got)
		if want := (tally{rows: rowsEach * loadWriters * loadWorkspaces, polls: got.polls}); got != want {
			t.Errorf("page size %d: %s", pageSizes[i], got)
		}
	}
}

// TestHarness_DetectsMissesOfANaiveCursor proves that the test above can fail: the same load on a
// cursor without a counter.
func TestHarness_DetectsMissesOfANaiveCursor(t *testing.T) {
	t.Parallel()
	for _, cursor := range []string{"id", "created_at, id"} {
		t.Run(cursor, func(t *testing.T) {
			t.Parallel()
			l := newLoad(t, pgtest.New(t), 60)
			const table = `CREATE TABLE naive (
				id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
				created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
				workspace_id uuid NOT NULL,
				key          text NOT NULL)`
			if _, err := l.db.ExecContext(t.Context(), table); err != nil {
				t.Fatal(err)
			}
			missed := 0
			for i, got := range l.run(t, naiveFeed{l.db, cursor}) {
				t.Logf("%d pollers with page size %d: %s", loadWorkspaces, pageSizes[i], got)
				missed += got.missed
			}
			if missed == 0 {
				t.Error("the harness detected no missed row")
			}
		})
	}
}

// inboxFeed follows the inbox as a client does.
type inboxFeed struct{ *activity.Inbox }

func (f inboxFeed) after(ctx context.Context, workspace uuid.UUID, last seen, limit int) ([]seen, error) {
	rows, err := f.Read(ctx, workspace, activity.Query{
		Oldest: true, Limit: limit, After: uuid.NullUUID{UUID: last.id, Valid: last.id != uuid.Nil},
	})
	page := make([]seen, len(rows))
	for i, r := range rows {
		page[i] = seen{id: r.ID, seq: r.Seq, at: r.CreatedAt, key: keyOf(r.RequestBody)}
	}
	return page, err
}

// naiveFeed has no counter: its cursor columns get their values some time before the commit.
type naiveFeed struct {
	db     *sql.DB
	cursor string // the columns of the cursor and of ORDER BY
}

func (f naiveFeed) Append(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, entries ...activity.Entry) error {
	for _, e := range entries {
		if _, err := tx.ExecContext(ctx, "INSERT INTO naive (workspace_id, key) VALUES ($1, $2)", workspace, keyOf(e.RequestBody)); err != nil {
			return err
		}
	}
	return nil
}

func (f naiveFeed) after(ctx context.Context, workspace uuid.UUID, last seen, limit int) ([]seen, error) {
	condition, args := "id > $3", []any{workspace, limit, last.seq}
	if f.cursor != "id" {
		condition, args = "(created_at, id) > ($4, $3)", append(args, last.at)
	}
	rows, err := f.db.QueryContext(ctx, "SELECT id, created_at, key FROM naive WHERE workspace_id = $1 AND "+condition+
		" ORDER BY "+f.cursor+" LIMIT $2", args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var page []seen
	for rows.Next() {
		var s seen
		if err := rows.Scan(&s.seq, &s.at, &s.key); err != nil {
			return nil, err
		}
		page = append(page, s)
	}
	return page, rows.Err()
}

// A tally compares what pollers saw with what writers wrote.
type tally struct{ rows, polls, missed, twice, unwritten, disordered int }

func (t *tally) add(o tally) {
	t.rows += o.rows
	t.polls += o.polls
	t.missed += o.missed
	t.twice += o.twice
	t.unwritten += o.unwritten
	t.disordered += o.disordered
}

func (t tally) String() string {
	return fmt.Sprintf("%d rows written, %d polls, %d missed, %d twice, %d never written, %d out of order",
		t.rows, t.polls, t.missed, t.twice, t.unwritten, t.disordered)
}

// compare counts. A row is out of order if its seq is not greater than that of the row before it, if
// its time is earlier, or if it does not directly follow the row that its transaction wrote before it.
// A transaction is out of order if it follows one that began after it was visible.
func compare(commits []commit, rows []seen, polls int) tally {
	t := tally{polls: polls}
	position := map[string]int{}
	for i, r := range rows {
		if _, ok := position[r.key]; ok {
			t.twice++
			continue
		}
		position[r.key] = i
		if i > 0 && (r.seq <= rows[i-1].seq || r.at.Before(rows[i-1].at)) {
			t.disordered++
		}
	}
	found := 0
	var ordered []commit
	for _, c := range commits {
		t.rows += len(c.keys)
		previous := -1
		for _, key := range c.keys {
			i, ok := position[key]
			if !ok {
				t.missed++
				continue
			}
			found++
			if previous >= 0 && i != previous+1 {
				t.disordered++
			}
			previous = i
		}
		if _, ok := position[c.keys[0]]; ok {
			ordered = append(ordered, c)
		}
	}
	t.unwritten = len(position) - found
	slices.SortFunc(ordered, func(a, b commit) int { return position[a.keys[0]] - position[b.keys[0]] })
	var latestBegun int64
	for _, c := range ordered {
		if c.visible < latestBegun {
			t.disordered++
		}
		latestBegun = max(latestBegun, c.begun)
	}
	return t
}
