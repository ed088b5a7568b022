package pendinguploads_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// The pinned statements that write files, token for token: a change to one must be deliberate and visible
// in review. Those that read are in statements_read_test.go.
const (
	insertFile = `
INSERT INTO pending_uploads (workspace_id, filename, mimetype, size_bytes, sha256, content, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, now() + $7 * interval '1 microsecond') RETURNING file_id, created_at, expires_at`
	insertChunk = "INSERT INTO pending_upload_chunks (file_id, seq, data) VALUES ($1, $2, $3)"

	// appendRows stands for the statements of the inbox, which its own package pins.
	appendRows = "append rows"
)

var (
	errDatabase = errors.New("the database fails")

	workspaceID = uuid.MustParse("11111111-1111-4111-8111-111111111111")
	fileIDs     = []uuid.UUID{uuid.MustParse("22222222-2222-4222-8222-222222222222"), uuid.MustParse("33333333-3333-4333-8333-333333333333")}
	createdAt   = time.Date(2026, 5, 5, 10, 0, 0, 123456000, time.UTC)
	expiresAt   = createdAt.Add(testLimits.TTL)
)

// fakeInbox runs appendRows in the storage's transaction and keeps the entries.
type fakeInbox struct{ entries []activity.Entry }

func (f *fakeInbox) Append(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, entries ...activity.Entry) error {
	f.entries = entries
	_, err := tx.ExecContext(ctx, appendRows, workspace, len(entries))
	return err
}

// mocked is a storage on three mocked pools, so that a statement on the wrong pool fails. Planted: a
// reservation made or released, or space reclaimed, through db, as it is without a pooler.
type mocked struct {
	*pendinguploads.Postgres
	db, staging, sessions sqlmock.Sqlmock
	inbox                 *fakeInbox
	pool                  *sql.DB // db
}

func newMocked(t *testing.T) mocked {
	t.Helper()
	return newMockedWith(t, testLimits)
}

func newMockedWith(t *testing.T, limits pendinguploads.Limits) mocked {
	t.Helper()
	return newMockedMatching(t, limits, sqlmock.QueryMatcherFunc(func(want, got string) error {
		if normalize(want) != normalize(got) {
			return fmt.Errorf("the statement is\n%s, want\n%s", got, want)
		}
		return nil
	}))
}

// normalize removes differences in white space from a statement, which is laid out for psql. It keeps
// every token.
func normalize(statement string) string {
	return strings.NewReplacer("( ", "(", " )", ")").Replace(strings.Join(strings.Fields(statement), " "))
}

func TestNormalize_KeepsEveryToken(t *testing.T) {
	t.Parallel()
	if got, want := normalize("\nSELECT count( * )\n  FROM (\n\tSELECT 1\n) u\n"), "SELECT count(*) FROM (SELECT 1) u"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for _, other := range []string{"SELECT 12", "SELECT 1  3", "SELECT 1, 2", "SELECT"} {
		if normalize(other) == normalize("SELECT 1 2") {
			t.Errorf("%q is taken for another statement", other)
		}
	}
}

func newMockedMatching(t *testing.T, limits pendinguploads.Limits, matcher sqlmock.QueryMatcher) mocked {
	t.Helper()
	open := func() (*sql.DB, sqlmock.Sqlmock) {
		db, mock, err := sqlmock.New(sqlmock.QueryMatcherOption(matcher))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := mock.ExpectationsWereMet(); err != nil {
				t.Error(err)
			}
			db.Close()
		})
		return db, mock
	}
	m := mocked{inbox: &fakeInbox{}}
	var db, staging, sessions *sql.DB
	db, m.db = open()
	staging, m.staging = open()
	sessions, m.sessions = open()
	m.pool = db
	m.Postgres = pendinguploads.NewPostgres(db, staging, m.inbox, limits)
	m.UseSessionPool(sessions)
	return m
}

// stageContents returns a file of one chunk and one of three.
func stageContents() [][]byte {
	return [][]byte{[]byte("hello"), bytes.Repeat([]byte("abcdefg"), (2<<20+3)/7+1)[:2<<20+3]}
}

// stageSteps returns the expectations, in order, of staging stageContents. Each makes its statement
// succeed or fail.
func (m mocked) stageSteps(t *testing.T) (names []string, expect []func(err error)) {
	t.Helper()
	contents := stageContents()
	step := func(name string, f func(err error)) { names, expect = append(names, name), append(expect, f) }
	insert := func(i int) {
		digest := sha256.Sum256(contents[i])
		step(fmt.Sprintf("insert file %d", i), func(err error) {
			e := m.staging.ExpectQuery(insertFile).WithArgs(workspaceID, fmt.Sprintf("%d.txt", i), "text/plain", len(contents[i]),
				digest[:], contents[i][:min(len(contents[i]), 1<<20)], int64(3_600_000_000))
			if err != nil {
				e.WillReturnError(err)
				return
			}
			e.WillReturnRows(sqlmock.NewRows([]string{"file_id", "created_at", "expires_at"}).AddRow(fileIDs[i].String(), createdAt, expiresAt))
		})
	}
	execute := func(name, statement string, args ...driver.Value) {
		step(name, func(err error) {
			m.staging.ExpectExec(statement).WithArgs(args...).WillReturnResult(driver.RowsAffected(1)).WillReturnError(err)
		})
	}
	step("begin", func(err error) { m.staging.ExpectBegin().WillReturnError(err) })
	insert(0)
	insert(1)
	execute("first chunk", insertChunk, fileIDs[1], 1, contents[1][1<<20:2<<20])
	execute("last chunk", insertChunk, fileIDs[1], 2, contents[1][2<<20:])
	execute("append", appendRows, workspaceID, 2)
	step("commit", func(err error) { m.staging.ExpectCommit().WillReturnError(err) })
	return names, expect
}

func (m mocked) stage(t *testing.T) ([]pendinguploads.File, error) {
	t.Helper()
	var files []pendinguploads.NewFile
	for i, content := range stageContents() {
		files = append(files, newFile(fmt.Sprintf("%d.txt", i), content))
	}
	return m.Stage(t.Context(), workspaceID, files)
}

// Planted once each and caught here: the commit before the append; the append before the
// files; a chunk left out; a statement on the other pool; the TTL in another unit.
func TestStage_StatementsInTheirOrder(t *testing.T) {
	t.Parallel()
	m := newMocked(t)
	_, expect := m.stageSteps(t)
	for _, succeed := range expect {
		succeed(nil)
	}
	staged, err := m.stage(t)
	if err != nil || len(staged) != 2 || len(m.inbox.entries) != 2 {
		t.Fatalf("%d files, %d inbox entries, %v", len(staged), len(m.inbox.entries), err)
	}
	for i, f := range staged {
		if f.ID != fileIDs[i] || f.Workspace != workspaceID || !f.CreatedAt.Equal(createdAt) || !f.ExpiresAt.Equal(expiresAt) {
			t.Errorf("file %d is %+v", i, f)
		}
		if want := fmt.Sprintf("chat_upload_receive: %d.txt", i); m.inbox.entries[i].Summary != want {
			t.Errorf("entry %d is %q, want %q", i, m.inbox.entries[i].Summary, want)
		}
	}
}

// Whatever fails, the transaction is rolled back and no files are returned. Planted: an
// error of the append ignored, an error of the commit ignored, no rollback.
func TestStage_EachStatementMayFail(t *testing.T) {
	t.Parallel()
	names, _ := newMocked(t).stageSteps(t)
	for failing, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMocked(t)
			_, expect := m.stageSteps(t)
			for _, succeed := range expect[:failing] {
				succeed(nil)
			}
			expect[failing](errDatabase)
			if name != "begin" && name != "commit" { // before there is a transaction, and after
				m.staging.ExpectRollback()
			}
			if staged, err := m.stage(t); staged != nil || !errors.Is(err, errDatabase) {
				t.Errorf("%d files, %v; want the database's error", len(staged), err)
			}
		})
	}
}

func TestStage_UnreadableAnswerIsAnError(t *testing.T) {
	t.Parallel()
	m := newMocked(t)
	m.staging.ExpectBegin()
	m.staging.ExpectQuery(insertFile).
		WillReturnRows(sqlmock.NewRows([]string{"file_id", "created_at", "expires_at"}).AddRow("not a UUID", createdAt, expiresAt))
	m.staging.ExpectRollback()
	if staged, err := m.stage(t); staged != nil || err == nil {
		t.Errorf("%d files, %v", len(staged), err)
	}
}

func TestStage_ContentThatFailsIsRolledBack(t *testing.T) {
	t.Parallel()
	errReader := errors.New("the reader fails")
	data := stageContents()[1]
	for _, c := range []struct {
		why     string
		content io.Reader
		chunks  int // chunks that are written before
		want    error
	}{
		{"short in its first chunk", bytes.NewReader(data[:10]), 0, pendinguploads.ErrInvalidFile},
		{"empty", bytes.NewReader(nil), 0, pendinguploads.ErrInvalidFile},
		{"short in a later chunk", bytes.NewReader(data[:1<<20+10]), 1, pendinguploads.ErrInvalidFile},
		{"too long", io.MultiReader(bytes.NewReader(data), bytes.NewReader([]byte("x"))), 3, pendinguploads.ErrInvalidFile},
		{"fails in its first chunk", iotest.ErrReader(errReader), 0, errReader},
		{"fails in a later chunk", io.MultiReader(bytes.NewReader(data[:1<<20]), iotest.ErrReader(errReader)), 1, errReader},
		{"fails instead of ending", io.MultiReader(bytes.NewReader(data), iotest.ErrReader(errReader)), 3, errReader},
	} {
		m := newMocked(t)
		m.staging.ExpectBegin()
		if c.chunks > 0 {
			m.staging.ExpectQuery(insertFile).
				WillReturnRows(sqlmock.NewRows([]string{"file_id", "created_at", "expires_at"}).AddRow(fileIDs[0].String(), createdAt, expiresAt))
		}
		for seq := 1; seq < c.chunks; seq++ {
			m.staging.ExpectExec(insertChunk).WillReturnResult(driver.RowsAffected(1))
		}
		m.staging.ExpectRollback()
		file := newFile("a.txt", data)
		file.Content = c.content
		if staged, err := m.Stage(t.Context(), workspaceID, []pendinguploads.NewFile{file}); staged != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: %d files, %v; want %v", c.why, len(staged), err, c.want)
		}
	}
}

func TestStage_RefusesBeforeItTouchesTheDatabase(t *testing.T) {
	t.Parallel()
	m := newMocked(t) // expects nothing
	good, bad := newFile("a.txt", []byte("hello")), newFile("a b.txt", nil)
	if staged, err := m.Stage(t.Context(), workspaceID, []pendinguploads.NewFile{good, bad}); staged != nil || !errors.Is(err, pendinguploads.ErrInvalidFile) {
		t.Errorf("%d files, %v", len(staged), err)
	}
}
