package pendinguploads_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// The statements that read and mark, to the letter.
const (
	selectOpen = "SELECT file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at, substring(content FROM 1 FOR $3) " +
		"FROM pending_uploads WHERE file_id = $1 AND workspace_id = $2 AND (acked_at IS NOT NULL OR expires_at > now())"
	selectFirst = "SELECT content FROM pending_uploads WHERE file_id = $1"
	selectChunk = "SELECT data FROM pending_upload_chunks WHERE file_id = $1 AND seq = $2"
	selectGet   = "SELECT file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at " +
		"FROM pending_uploads WHERE file_id = $1 AND workspace_id = $2 AND (acked_at IS NOT NULL OR expires_at > now())"
	updateFetched = "UPDATE pending_uploads SET fetched_at = now() " +
		"WHERE file_id = $1 AND workspace_id = $2 AND fetched_at IS NULL AND (acked_at IS NOT NULL OR expires_at > now())"
	updateAcked = "UPDATE pending_uploads SET acked_at = now() " +
		"WHERE file_id = $1 AND workspace_id = $2 AND acked_at IS NULL AND expires_at > now() " +
		"RETURNING file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at"

	listSelect = "SELECT file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at " +
		"FROM pending_uploads WHERE workspace_id = $1 AND (acked_at IS NOT NULL OR expires_at > now()) "
	listUnacked = "AND acked_at IS NULL "
	listAcked   = "AND acked_at IS NOT NULL "
	listAfter   = "AND (created_at, file_id) > ($3, $4) "
	listOrder   = " ORDER BY created_at, file_id LIMIT $2"
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

// badRows are answers that cannot be a file; the digest is the last to be looked at.
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

// An update that finds nothing to do is followed by a look whether there is a file.
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
		{pendinguploads.ListQuery{}, listSelect + listUnacked + listOrder, []driver.Value{workspaceID, 100}},
		{pendinguploads.ListQuery{Filter: pendinguploads.OnlyAcked, Limit: 7}, listSelect + listAcked + listOrder, []driver.Value{workspaceID, 7}},
		{pendinguploads.ListQuery{Filter: pendinguploads.All, Limit: 501}, listBoth(""), []driver.Value{workspaceID, 500}},
		{pendinguploads.ListQuery{Limit: -1, After: after}, listSelect + listUnacked + listAfter + listOrder,
			[]driver.Value{workspaceID, 100, createdAt, fileIDs[1]}},
		{pendinguploads.ListQuery{Filter: pendinguploads.OnlyAcked, Limit: 500, After: after}, listSelect + listAcked + listAfter + listOrder,
			[]driver.Value{workspaceID, 500, createdAt, fileIDs[1]}},
		{pendinguploads.ListQuery{Filter: pendinguploads.All, After: after}, listBoth(listAfter),
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

// listBoth is the statement that lists files of both states.
func listBoth(more string) string {
	return "(" + listSelect + listUnacked + more + listOrder + ") UNION ALL (" + listSelect + listAcked + more + listOrder + ")" + listOrder
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

const (
	openBytes = 128 << 10 // what opening a file reads of it
	mockRows  = 4         // in which mockBytes are, the last of them with one byte
	rowBytes  = pendinguploads.ChunkBytes
)

var mockBytes = func() []byte {
	b := make([]byte, (mockRows-1)*rowBytes+1)
	for i := range b {
		b[i] = byte(i >> 10)
	}
	return b
}()

// openMocked opens mockBytes, of which the first are given.
func openMocked(t *testing.T, m mocked, first []byte) io.ReadSeekCloser {
	t.Helper()
	m.db.ExpectQuery(selectOpen).WithArgs(fileIDs[0], workspaceID, openBytes).
		WillReturnRows(sqlmock.NewRows(append(fileColumns, "content")).AddRow(append(fileRow(fileIDs[0], len(mockBytes)), first)...))
	f, content, err := m.Open(t.Context(), workspaceID, fileIDs[0])
	if err != nil || !isMockFile(f, fileIDs[0]) || f.Size != int64(len(mockBytes)) {
		t.Fatalf("%+v, %v", f, err)
	}
	return content
}

// expectRow expects the query for one row of the file.
func (m mocked) expectRow(seq int) *sqlmock.ExpectedQuery {
	if seq == 0 {
		return m.db.ExpectQuery(selectFirst).WithArgs(fileIDs[0])
	}
	return m.db.ExpectQuery(selectChunk).WithArgs(fileIDs[0], seq)
}

func rowOf(seq int) *sqlmock.Rows {
	return sqlmock.NewRows([]string{"piece"}).AddRow(mockBytes[seq*rowBytes : min((seq+1)*rowBytes, len(mockBytes))])
}

// Planted: the next row read twice, or taken for another; a row left out; what Open has read taken
// for all of the first row.
func TestOpen_Statements(t *testing.T) {
	t.Parallel()
	m := newMocked(t)
	content := openMocked(t, m, mockBytes[:openBytes])
	for seq := range mockRows {
		m.expectRow(seq).WillReturnRows(rowOf(seq))
	}
	if got, err := io.ReadAll(content); err != nil || !bytes.Equal(got, mockBytes) {
		t.Errorf("%d bytes, or wrong ones, %v", len(got), err)
	}

	// Back, and then to where the row after that is not wanted.
	for _, seq := range []int{1, 2, 0, 1, 2, 3} {
		m.expectRow(seq).WillReturnRows(rowOf(seq))
	}
	for _, at := range []int64{rowBytes + 7, 9} {
		if _, err := content.Seek(at, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 10)
		if n, err := content.Read(got); n != 10 || err != nil || !bytes.Equal(got, mockBytes[at:at+10]) {
			t.Errorf("at %d: %d bytes, or wrong ones, %v", at, n, err)
		}
	}
	if got, err := io.ReadAll(content); err != nil || !bytes.Equal(got, mockBytes[19:]) {
		t.Errorf("%d bytes to the end, or wrong ones, %v", len(got), err)
	}

	open := func() *sqlmock.ExpectedQuery {
		return m.db.ExpectQuery(selectOpen).WithArgs(fileIDs[0], workspaceID, openBytes)
	}
	open().WillReturnRows(sqlmock.NewRows(append(fileColumns, "content")))
	if _, content, err := m.Open(t.Context(), workspaceID, fileIDs[0]); content != nil || !errors.Is(err, pendinguploads.ErrNotFound) {
		t.Errorf("no row: %v, want ErrNotFound", err)
	}
	open().WillReturnError(errDatabase)
	if _, content, err := m.Open(t.Context(), workspaceID, fileIDs[0]); content != nil || !errors.Is(err, errDatabase) {
		t.Errorf("a failing database: %v", err)
	}
}

// What is missing of a file is never taken for its end, whether it is read ahead or when it is
// asked for. Planted: each of these errors dropped where a row is read.
func TestRead_EachRowMayFail(t *testing.T) {
	t.Parallel()
	const last = mockRows - 1
	nothing := func() *sqlmock.Rows { return sqlmock.NewRows([]string{"piece"}) }
	for why, c := range map[string]struct {
		rows func() *sqlmock.Rows // nil: the query fails
		want error
	}{
		"gone":                    {nothing, pendinguploads.ErrTruncated},
		"empty":                   {func() *sqlmock.Rows { return nothing().AddRow([]byte{}) }, pendinguploads.ErrTruncated},
		"cut off":                 {func() *sqlmock.Rows { return rowOf(last).RowError(0, errDatabase) }, errDatabase},
		"cut off after its bytes": {func() *sqlmock.Rows { return rowOf(last).CloseError(errDatabase) }, errDatabase},
		"not bytes":               {func() *sqlmock.Rows { return sqlmock.NewRows([]string{"piece", "more"}).AddRow([]byte{1}, 1) }, nil},
		"refused":                 {nil, errDatabase},
	} {
		for _, ahead := range []bool{false, true} {
			m := newMocked(t)
			content := openMocked(t, m, mockBytes[:openBytes])
			from := last
			if ahead {
				from--
				m.expectRow(from).WillReturnRows(rowOf(from))
			}
			if q := m.expectRow(last); c.rows != nil {
				q.WillReturnRows(c.rows())
			} else {
				q.WillReturnError(errDatabase)
			}
			if _, err := content.Seek(int64(from*rowBytes), io.SeekStart); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(content)
			if len(got) != (last-from)*rowBytes || err == nil || c.want != nil && !errors.Is(err, c.want) ||
				errors.Is(err, pendinguploads.ErrTruncated) != (c.want == pendinguploads.ErrTruncated) {
				t.Errorf("%s, ahead %t: %d bytes, %v; want %v", why, ahead, len(got), err, c.want)
			}
		}
	}
	m := newMocked(t)
	content := openMocked(t, m, mockBytes[:10])
	m.expectRow(0).WillReturnRows(sqlmock.NewRows([]string{"piece"}).AddRow(mockBytes[:10]))
	if got, err := io.ReadAll(content); len(got) != 10 || !errors.Is(err, pendinguploads.ErrTruncated) {
		t.Errorf("the first row is short: %d bytes, %v", len(got), err)
	}
}

// Readers that are done before their file is, and those that wait for their turn. Planted: the
// place of a reader ahead not given back; a reader that waits whatever its context says.
func TestContent_ReadersTakeTurns(t *testing.T) {
	t.Parallel()
	storage, db := newPostgres(t)
	f := stageBytes(t, storage, mockBytes)
	for range 50 { // more than may read ahead at once
		_, content, err := storage.Open(t.Context(), f.Workspace, f.ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, content, 1); err != nil {
			t.Error(err)
		}
		if err := content.Close(); err != nil {
			t.Error(err)
		}
		if _, err := content.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}

	var open []io.ReadSeekCloser
	ctx, cancel := context.WithCancel(t.Context())
	for range 10 {
		_, content, err := storage.Open(ctx, f.Workspace, f.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer content.Close()
		open = append(open, content)
	}
	db.SetMaxOpenConns(1)
	held, err := db.Conn(t.Context()) // nobody gets a row now
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	var g errgroup.Group
	for _, content := range open {
		g.Go(func() error {
			if _, err := io.Copy(io.Discard, content); !errors.Is(err, context.Canceled) {
				return fmt.Errorf("%w, want the context's error", err)
			}
			return nil
		})
	}
	for start := time.Now(); db.Stats().WaitCount < 4 && time.Since(start) < time.Minute; { // all whose turn it is
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func TestFile_StateAndURI(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for want, f := range map[pendinguploads.State]pendinguploads.File{
		pendinguploads.Staged: {}, pendinguploads.Fetched: {FetchedAt: &now}, pendinguploads.Acked: {AckedAt: &now},
	} {
		if got := f.State(); got != want {
			t.Errorf("state %s, want %s", got, want)
		}
	}
	f := pendinguploads.File{ID: fileIDs[0], Workspace: workspaceID}
	if want := "platform-pending:11111111-1111-4111-8111-111111111111/22222222-2222-4222-8222-222222222222"; f.URI() != want {
		t.Errorf("URI %s, want %s", f.URI(), want)
	}
}
