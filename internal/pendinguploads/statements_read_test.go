package pendinguploads_test

import (
	"crypto/sha256"
	"database/sql/driver"
	"errors"
	"testing"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// The pinned statements that read and mark files.
const (
	selectOpen = `
SELECT file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at, substring(content FROM 1 FOR $3)
FROM pending_uploads WHERE file_id = $1 AND workspace_id = $2 AND (acked_at IS NOT NULL OR expires_at > now())`
	selectFirst = "SELECT content FROM pending_uploads WHERE file_id = $1"
	selectChunk = "SELECT data FROM pending_upload_chunks WHERE file_id = $1 AND seq = $2"
	selectGet   = `
SELECT file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at
FROM pending_uploads WHERE file_id = $1 AND workspace_id = $2 AND (acked_at IS NOT NULL OR expires_at > now())`
	updateFetched = `
UPDATE pending_uploads SET fetched_at = now()
WHERE file_id = $1 AND workspace_id = $2 AND fetched_at IS NULL AND (acked_at IS NOT NULL OR expires_at > now())`
	updateAcked = `
UPDATE pending_uploads SET acked_at = now()
WHERE file_id = $1 AND workspace_id = $2 AND acked_at IS NULL AND expires_at > now()
RETURNING file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at`

	listSelect = `
SELECT file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at
FROM pending_uploads WHERE workspace_id = $1 AND (acked_at IS NOT NULL OR expires_at > now())`
	listUnacked = " AND acked_at IS NULL "
	listAcked   = " AND acked_at IS NOT NULL "
	listOrder   = " AND (created_at, file_id) > ($3, $4) ORDER BY created_at, file_id LIMIT $2"
	listAll     = "(" + listSelect + listUnacked + listOrder + ") UNION ALL (" + listSelect + listAcked + listOrder + ") ORDER BY created_at, file_id LIMIT $2"
)

var (
	fileColumns = []string{"file_id", "filename", "mimetype", "size_bytes", "sha256", "created_at", "fetched_at", "acked_at", "expires_at"}
	mockDigest  = sha256.Sum256([]byte("a file of the mock"))
)

func fileRow(id uuid.UUID, size int) []driver.Value {
	return []driver.Value{id.String(), "a.txt", "text/plain", int64(size), mockDigest[:], createdAt, nil, expiresAt, expiresAt}
}

func fileRows(ids ...uuid.UUID) *sqlmock.Rows {
	rows := sqlmock.NewRows(fileColumns)
	for _, id := range ids {
		rows.AddRow(fileRow(id, 5)...)
	}
	return rows
}

func isMockFile(f pendinguploads.File, id uuid.UUID) bool {
	return f.ID == id && f.Workspace == workspaceID && f.Name == "a.txt" && f.MIMEType == "text/plain" && f.SHA256 == mockDigest &&
		f.CreatedAt.Equal(createdAt) && f.FetchedAt == nil && f.AckedAt.Equal(expiresAt) && f.ExpiresAt.Equal(expiresAt)
}

// badRows are rows that are not a file; the digest is the last column that is checked.
func badRows() map[string][]driver.Value {
	bad := map[string][]driver.Value{"not a UUID": fileRow(fileIDs[0], 5), "short digest": fileRow(fileIDs[0], 5), "digest as text": fileRow(fileIDs[0], 5)}
	bad["not a UUID"][0] = "x"
	bad["short digest"][4] = mockDigest[1:]
	bad["digest as text"][4] = string(mockDigest[:])
	return bad
}

func TestGet_Statement(t *testing.T) {
	t.Parallel()
	m, id := newMocked(t), fileIDs[0]
	get := func() *sqlmock.ExpectedQuery { return m.db.ExpectQuery(selectGet).WithArgs(id, workspaceID) }
	get().WillReturnRows(fileRows(id))
	if f, err := m.Get(t.Context(), workspaceID, id); err != nil || !isMockFile(f, id) || f.Size != 5 {
		t.Errorf("%+v, %v", f, err)
	}
	get().WillReturnRows(fileRows())
	if _, err := m.Get(t.Context(), workspaceID, id); !errors.Is(err, pendinguploads.ErrNotFound) {
		t.Errorf("no row: %v, want ErrNotFound", err)
	}
	get().WillReturnError(errDatabase)
	if _, err := m.Get(t.Context(), workspaceID, id); !errors.Is(err, errDatabase) {
		t.Errorf("a failing database: %v", err)
	}
	for why, row := range badRows() {
		get().WillReturnRows(sqlmock.NewRows(fileColumns).AddRow(row...))
		if f, err := m.Get(t.Context(), workspaceID, id); err == nil || errors.Is(err, pendinguploads.ErrNotFound) || f != (pendinguploads.File{}) {
			t.Errorf("%s: %+v, %v", why, f, err)
		}
	}
}

func TestMarkFetched_Statement(t *testing.T) {
	t.Parallel()
	m, id := newMocked(t), fileIDs[0]
	for rows, want := range map[int64]bool{0: false, 1: true} {
		m.db.ExpectExec(updateFetched).WithArgs(id, workspaceID).WillReturnResult(driver.RowsAffected(rows))
		if first, err := m.MarkFetched(t.Context(), workspaceID, id); err != nil || first != want {
			t.Errorf("%d rows: first %t, %v", rows, first, err)
		}
	}
	m.db.ExpectExec(updateFetched).WithArgs(id, workspaceID).WillReturnError(errDatabase)
	if first, err := m.MarkFetched(t.Context(), workspaceID, id); first || !errors.Is(err, errDatabase) {
		t.Errorf("a failing database: first %t, %v", first, err)
	}
}

// If the update finds no row, a select finds out whether there is a file.
func TestAck_Statements(t *testing.T) {
	t.Parallel()
	m, id := newMocked(t), fileIDs[0]
	update := func() *sqlmock.ExpectedQuery { return m.db.ExpectQuery(updateAcked).WithArgs(id, workspaceID) }
	get := func() *sqlmock.ExpectedQuery {
		update().WillReturnRows(fileRows())
		return m.db.ExpectQuery(selectGet).WithArgs(id, workspaceID)
	}
	for _, c := range []struct {
		why    string
		expect func()
		first  bool
		want   error
	}{
		{"the first", func() { update().WillReturnRows(fileRows(id)) }, true, nil},
		{"again", func() { get().WillReturnRows(fileRows(id)) }, false, nil},
		{"missing", func() { get().WillReturnRows(fileRows()) }, false, pendinguploads.ErrNotFound},
		{"the update fails", func() { update().WillReturnError(errDatabase) }, false, errDatabase},
		{"the look fails", func() { get().WillReturnError(errDatabase) }, false, errDatabase},
	} {
		c.expect()
		f, first, err := m.Ack(t.Context(), workspaceID, id)
		if first != c.first || !errors.Is(err, c.want) || (err == nil) != (f.ID == id && f.Workspace == workspaceID) {
			t.Errorf("%s: %v, first %t, %v", c.why, f, first, err)
		}
	}
}

func TestList_Statements(t *testing.T) {
	t.Parallel()
	m := newMocked(t)
	after := uuid.NullUUID{UUID: fileIDs[1], Valid: true}
	for _, c := range []struct {
		q         pendinguploads.ListQuery
		statement string
		args      []driver.Value
	}{
		{pendinguploads.ListQuery{}, listSelect + listUnacked + listOrder, []driver.Value{workspaceID, 100, "-infinity", uuid.Nil}},
		{pendinguploads.ListQuery{Filter: pendinguploads.OnlyAcked, Limit: 7}, listSelect + listAcked + listOrder, []driver.Value{workspaceID, 7, "-infinity", uuid.Nil}},
		{pendinguploads.ListQuery{Filter: pendinguploads.All, Limit: 501}, listAll, []driver.Value{workspaceID, 500, "-infinity", uuid.Nil}},
		{pendinguploads.ListQuery{Limit: -1, After: after}, listSelect + listUnacked + listOrder,
			[]driver.Value{workspaceID, 100, createdAt, fileIDs[1]}},
		{pendinguploads.ListQuery{Filter: pendinguploads.OnlyAcked, Limit: 500, After: after}, listSelect + listAcked + listOrder,
			[]driver.Value{workspaceID, 500, createdAt, fileIDs[1]}},
		{pendinguploads.ListQuery{Filter: pendinguploads.All, After: after}, listAll,
			[]driver.Value{workspaceID, 100, createdAt, fileIDs[1]}},
	} {
		if c.q.After.Valid {
			m.db.ExpectQuery(selectGet).WithArgs(fileIDs[1], workspaceID).WillReturnRows(fileRows(fileIDs[1]))
		}
		m.db.ExpectQuery(c.statement).WithArgs(c.args...).WillReturnRows(fileRows(fileIDs...))
		files, err := m.List(t.Context(), workspaceID, c.q)
		if err != nil || len(files) != 2 || !isMockFile(files[0], fileIDs[0]) || !isMockFile(files[1], fileIDs[1]) {
			t.Errorf("%+v: %+v, %v", c.q, files, err)
		}
	}
	m.db.ExpectQuery(listSelect + listUnacked + listOrder).WillReturnRows(fileRows())
	if files, err := m.List(t.Context(), workspaceID, pendinguploads.ListQuery{}); err != nil || files == nil || len(files) != 0 {
		t.Errorf("no rows: %v, %v", files, err)
	}
}

func TestList_EachStepMayFail(t *testing.T) {
	t.Parallel()
	m := newMocked(t)
	list := func(q pendinguploads.ListQuery, want error) {
		t.Helper()
		if files, err := m.List(t.Context(), workspaceID, q); files != nil || err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%v, %v; want %v", files, err, want)
		}
	}
	after := pendinguploads.ListQuery{After: uuid.NullUUID{UUID: fileIDs[0], Valid: true}}
	m.db.ExpectQuery(selectGet).WillReturnRows(fileRows())
	list(after, pendinguploads.ErrNotFound)
	m.db.ExpectQuery(selectGet).WillReturnError(errDatabase)
	list(after, errDatabase)

	query := func() *sqlmock.ExpectedQuery { return m.db.ExpectQuery(listSelect + listUnacked + listOrder) }
	query().WillReturnError(errDatabase)
	list(pendinguploads.ListQuery{}, errDatabase)
	query().WillReturnRows(fileRows(fileIDs...).RowError(1, errDatabase)) // cut off after a row
	list(pendinguploads.ListQuery{}, errDatabase)
	for _, row := range badRows() {
		query().WillReturnRows(fileRows(fileIDs[0]).AddRow(row...))
		list(pendinguploads.ListQuery{}, nil)
	}
}
