package events_test

import (
	"database/sql"
	"encoding/json"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/events"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// fixture changes files and messages in the database, without a platform.
type fixture struct {
	db    *sql.DB
	inbox *activity.Inbox
	log   *events.Log
}

func newFixture(t testing.TB) fixture {
	db := pgtest.Open(t, pgtest.New(t))
	db.SetMaxOpenConns(40)
	db.SetMaxIdleConns(40)
	inbox := activity.New(db)
	return fixture{db, inbox, events.New(db, inbox)}
}

const (
	sqlStage = `
INSERT INTO pending_uploads (workspace_id, content, size_bytes, filename, mimetype, sha256)
VALUES ($1, 'abc', 3, $2, 'text/plain', sha256('abc')) RETURNING file_id`
	sqlFetch  = `UPDATE pending_uploads SET fetched_at = now() WHERE file_id = $1 AND fetched_at IS NULL`
	sqlAck    = `UPDATE pending_uploads SET acked_at = now() WHERE file_id = $1 AND acked_at IS NULL`
	sqlDelete = `DELETE FROM pending_uploads WHERE file_id = $1`
)

// stage stages a file as the storage does: the file and its row in one transaction.
func (d fixture) stage(t testing.TB, workspace uuid.UUID, name string) uuid.UUID {
	t.Helper()
	tx, err := d.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() // after a commit it does nothing
	var id uuid.UUID
	if err := tx.QueryRowContext(t.Context(), sqlStage, workspace, name).Scan(&id); err != nil {
		t.Fatal(err)
	}
	body, _ := json.Marshal(map[string]any{"file_id": id, "name": name, "size": 3})
	entry := activity.Entry{Type: activity.TypeA2AReceive, Method: activity.MethodChatUpload, RequestBody: body}
	if err := d.inbox.Append(t.Context(), tx, workspace, entry); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	return id
}

func (d fixture) message(t testing.TB, workspace uuid.UUID, method string) {
	t.Helper()
	entry := activity.Entry{Type: activity.TypeA2AReceive, Method: method, RequestBody: json.RawMessage(`{"\u0000":1}`)}
	if err := d.inbox.Record(t.Context(), workspace, entry); err != nil {
		t.Fatal(err)
	}
}

func (d fixture) exec(t testing.TB, statement string, args ...any) {
	t.Helper()
	if _, err := d.db.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// all reads from p on, with pages of limit.
func (d fixture) all(t testing.TB, workspace uuid.UUID, p events.Position, limit int) []events.Event {
	t.Helper()
	var got []events.Event
	for {
		page, more, err := d.log.After(t.Context(), workspace, p, limit)
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, page...); len(page) > 0 {
			p = page[len(page)-1].Position
		}
		if !more {
			return got
		}
	}
}
