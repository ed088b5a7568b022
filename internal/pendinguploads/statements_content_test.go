package pendinguploads_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

const (
	openBytes = 128 << 10 // what Open reads
	mockRows  = 4         // rows of mockBytes; the last has one byte
	rowBytes  = pendinguploads.ChunkBytes
)

var mockBytes = func() []byte {
	b := make([]byte, (mockRows-1)*rowBytes+1)
	for i := range b {
		b[i] = byte(i >> 10)
	}
	return b
}()

// openMocked opens a file of mockBytes, whose first bytes are first.
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
	return sqlmock.NewRows([]string{"chunk"}).AddRow(mockBytes[seq*rowBytes : min((seq+1)*rowBytes, len(mockBytes))])
}

// Planted: the next row read twice or taken for another; a row left out; what Open has read taken for the
// whole first row.
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

	// Back, and then to an offset for which the row that is read ahead is not needed.
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

// A missing part of a file is never taken for its end, whether it is read ahead or on demand. Planted:
// each of these errors dropped where a row is read.
func TestRead_EachRowMayFail(t *testing.T) {
	t.Parallel()
	const last = mockRows - 1
	nothing := func() *sqlmock.Rows { return sqlmock.NewRows([]string{"chunk"}) }
	for why, c := range map[string]struct {
		rows func() *sqlmock.Rows // nil: the query fails
		want error
	}{
		"gone":                    {nothing, pendinguploads.ErrTruncated},
		"empty":                   {func() *sqlmock.Rows { return nothing().AddRow([]byte{}) }, pendinguploads.ErrTruncated},
		"cut off":                 {func() *sqlmock.Rows { return rowOf(last).RowError(0, errDatabase) }, errDatabase},
		"cut off after its bytes": {func() *sqlmock.Rows { return rowOf(last).CloseError(errDatabase) }, errDatabase},
		"not bytes":               {func() *sqlmock.Rows { return sqlmock.NewRows([]string{"chunk", "more"}).AddRow([]byte{1}, 1) }, nil},
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
	m.expectRow(0).WillReturnRows(sqlmock.NewRows([]string{"chunk"}).AddRow(mockBytes[:10]))
	if got, err := io.ReadAll(content); len(got) != 10 || !errors.Is(err, pendinguploads.ErrTruncated) {
		t.Errorf("the first row is short: %d bytes, %v", len(got), err)
	}
}

// Readers that are closed before the end of their file, and readers that wait for a slot, release what
// they hold. Planted: the slot of a reader ahead not released; a reader that waits after its context has
// ended.
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
	held, err := db.Conn(t.Context()) // no reader gets a connection now
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
	for start := time.Now(); db.Stats().WaitCount < 4 && time.Since(start) < time.Minute; { // all that hold a slot
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
