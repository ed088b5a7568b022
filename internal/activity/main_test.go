package activity_test

import (
	"database/sql"
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// newInbox returns an inbox on a database of its own.
func newInbox(t *testing.T) (*activity.Inbox, *sql.DB) {
	t.Helper()
	db := pgtest.Open(t, pgtest.New(t))
	return activity.New(db), db
}

// message returns an entry with that summary.
func message(summary string) activity.Entry {
	return activity.Entry{Type: activity.TypeA2AReceive, Method: "message/send", Summary: summary}
}

// record records entries, each on its own.
func record(t *testing.T, in *activity.Inbox, workspace uuid.UUID, entries ...activity.Entry) {
	t.Helper()
	for _, e := range entries {
		if err := in.Record(t.Context(), workspace, e); err != nil {
			t.Fatal(err)
		}
	}
}

// appendIn appends entries in one transaction and ends it with end.
func appendIn(t *testing.T, in *activity.Inbox, db *sql.DB, workspace uuid.UUID, end func(*sql.Tx) error, entries ...activity.Entry) {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() // after end it does nothing
	if err := in.Append(t.Context(), tx, workspace, entries...); err != nil {
		t.Fatal(err)
	}
	if err := end(tx); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, in *activity.Inbox, workspace uuid.UUID, q activity.Query) []activity.Row {
	t.Helper()
	rows, err := in.Read(t.Context(), workspace, q)
	if err != nil {
		t.Fatal(err)
	}
	if rows == nil {
		t.Fatal("Read returned nil, which renders as null")
	}
	return rows
}

func summaries(rows []activity.Row) []string {
	var s []string
	for _, r := range rows {
		s = append(s, *r.Summary)
	}
	return s
}

func wantSummaries(t *testing.T, rows []activity.Row, want ...string) {
	t.Helper()
	if got := summaries(rows); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// after returns the query of a client that has read up to r.
func after(r activity.Row) activity.Query {
	return activity.Query{After: uuid.NullUUID{UUID: r.ID, Valid: true}}
}

// onlyRow returns the only row of a workspace.
func onlyRow(t *testing.T, in *activity.Inbox, workspace uuid.UUID) activity.Row {
	t.Helper()
	rows := read(t, in, workspace, activity.Query{})
	if len(rows) != 1 {
		t.Fatalf("%d rows, want 1", len(rows))
	}
	return rows[0]
}

func render(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
