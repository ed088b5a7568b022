package activity_test

import (
	"errors"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
)

// The statements that the cursor's promise rests on, pinned token by token: a change must be
// deliberate, and visible in review.
const (
	appendRows = `
WITH counter AS (
    INSERT INTO activity_counters AS c (workspace_id, last_seq) VALUES ($1, $2)
    ON CONFLICT (workspace_id) DO UPDATE SET last_seq = c.last_seq + excluded.last_seq
    RETURNING last_seq
)
INSERT INTO activity_logs (workspace_id, seq, activity_type, source_id, target_id, method, summary,
    request_body, response_body, body_bytes, duration_ms, status, error_detail)
SELECT $1, counter.last_seq - $2 + r.n, r.activity_type, r.source_id, r.target_id, r.method, r.summary,
    r.request_body, r.response_body, r.body_bytes, r.duration_ms, r.status, r.error_detail
FROM counter, unnest($3::text[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::json[], $9::json[],
    $10::integer[], $11::bigint[], $12::text[], $13::text[])
    WITH ORDINALITY AS r (activity_type, source_id, target_id, method, summary, request_body, response_body,
    body_bytes, duration_ms, status, error_detail, n)`

	seqOf = "SELECT l.seq, c.last_seq, false FROM activity_logs l LEFT JOIN activity_counters c USING (workspace_id) WHERE l.id = $1 AND l.workspace_id = $2"

	pageAfter = `
SELECT id, seq, workspace_id, activity_type, source_id, target_id, method, summary, request_body, response_body,
    duration_ms, status, error_detail, created_at
FROM (
    SELECT *, sum(body_bytes) OVER (ORDER BY seq ASC) - body_bytes AS bytes_before FROM (
        SELECT * FROM activity_logs WHERE workspace_id = $1 AND seq > $4 ORDER BY seq ASC LIMIT $2
    ) picked
) page WHERE bytes_before <= $3 ORDER BY seq ASC`
)

var errDatabase = errors.New("the database fails")

func newMocked(t *testing.T) (*activity.Inbox, sqlmock.Sqlmock) {
	t.Helper()
	db, mock, err := sqlmock.New(sqlmock.QueryMatcherOption(sqlmock.QueryMatcherEqual))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mock.ExpectationsWereMet(); err != nil {
			t.Error(err)
		}
		db.Close()
	})
	return activity.New(db), mock
}

func TestRecord_IsOneStatementAndACommit(t *testing.T) {
	t.Parallel()
	workspace, source := uuid.New(), uuid.New()
	took := time.Second
	e := activity.Entry{Type: "a2a_receive", SourceID: validUUID(source), Method: "message/send", RequestBody: []byte(`{"a":1}`), Duration: &took}
	for _, commits := range []error{nil, errDatabase} {
		in, mock := newMocked(t)
		mock.ExpectBegin()
		mock.ExpectExec(appendRows).WithArgs(workspace, 1, `{"a2a_receive"}`, `{"`+source.String()+`"}`, `{NULL}`, `{"message/send"}`, `{NULL}`,
			`{"{\"a\":1}"}`, `{NULL}`, `{7}`, `{1000}`, `{NULL}`, `{NULL}`).WillReturnResult(sqlmock.NewResult(0, 1))
		mock.ExpectCommit().WillReturnError(commits)
		if err := in.Record(t.Context(), workspace, e); !errors.Is(err, commits) {
			t.Errorf("%v, want %v", err, commits)
		}
	}
}

// Without new rows a poll is one round trip. Planted: the page not read although there is no counter,
// or a later number; read although there are no new rows.
func TestRead_QueriesAPageOnlyIfThereAreNewRows(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		cursor *sqlmock.Rows
		page   bool
		want   error
	}{{cursorAt(41, 41, false), false, nil}, {cursorAt(41, 42, false), true, nil}, {cursorAt(41, nil, false), true, nil}, {noCursor(), false, activity.ErrCursorGone}} {
		in, mock := newMocked(t)
		workspace, last := uuid.New(), uuid.New()
		mock.ExpectQuery(seqOf).WithArgs(last, workspace).WillReturnRows(c.cursor)
		if c.page {
			mock.ExpectQuery(pageAfter).WithArgs(workspace, 7, activity.PageBytes, 41).WillReturnRows(sqlmock.NewRows([]string{"id"}))
		}
		if page, err := in.Read(t.Context(), workspace, activity.Query{After: validUUID(last), Limit: 7}); !errors.Is(err, c.want) || page == nil == (c.want == nil) {
			t.Errorf("%v, %v, want %v", page, err, c.want)
		}
	}
}

// noCursor returns the rows of the cursor query if the cursor is gone.
func noCursor() *sqlmock.Rows { return sqlmock.NewRows([]string{"seq", "last_seq", "due"}) }

// cursorAt returns the row of a cursor in a workspace whose last number is last.
func cursorAt(seq int, last any, due bool) *sqlmock.Rows { return noCursor().AddRow(seq, last, due) }

// A page that fails midway must not be returned: the reader would take the missing rows for absent.
func TestRead_ReturnsNoPartOfAFailedPage(t *testing.T) {
	t.Parallel()
	columns := []string{"id", "seq", "workspace_id", "activity_type", "source_id", "target_id", "method", "summary", "request_body",
		"response_body", "duration_ms", "status", "error_detail", "created_at"}
	row := sqlmock.NewRows(columns).AddRow(uuid.NewString(), 1, uuid.NewString(), "a2a_receive", nil, nil, nil, nil, nil, nil, nil, nil, nil, time.Now())
	for name, rows := range map[string]*sqlmock.Rows{
		"second row fails":    row.AddRow(uuid.NewString(), 2, uuid.NewString(), "a2a_receive", nil, nil, nil, nil, nil, nil, nil, nil, nil, time.Now()).RowError(1, errDatabase),
		"row of another form": sqlmock.NewRows(columns[:1]).AddRow("x"),
	} {
		db, mock, err := sqlmock.New()
		if err != nil {
			t.Fatal(err)
		}
		mock.ExpectQuery("SELECT").WillReturnRows(rows)
		if page, err := activity.New(db).Read(t.Context(), uuid.New(), activity.Query{}); err == nil || page != nil {
			t.Errorf("%s: %v, %v", name, page, err)
		}
		db.Close()
	}
}
