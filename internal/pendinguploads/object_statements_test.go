package pendinguploads_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"errors"
	"io"
	"io/fs"
	"slices"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// A mocked ObjectStorage for what happens when the database fails at each statement. Statements are
// matched by their first words: the tests on a real database check what they do.
func newMockedObjectStorage(t *testing.T, store pendinguploads.ObjectStore) (mocked, *pendinguploads.ObjectStorage) {
	t.Helper()
	m := newMockedMatching(t, testLimits, sqlmock.QueryMatcherRegexp)
	m.db.ExpectQuery("INSERT INTO upload_stores").WithArgs("mem:").WillReturnRows(sqlmock.NewRows([]string{"id"}).AddRow(7))
	m.db.ExpectQuery("SELECT url, namespace").WithArgs(7).WillReturnRows(sqlmock.NewRows([]string{"url", "namespace"}).AddRow("mem:", uuid.NewString()))
	m.db.ExpectQuery("SELECT array").WithArgs(7, 10).WillReturnRows(sqlmock.NewRows([]string{"array"}).AddRow("{}"))
	b, err := pendinguploads.NewObjectStorage(t.Context(), m.Postgres, func(context.Context, string, uuid.UUID) (pendinguploads.ObjectStore, error) { return store, nil },
		pendinguploads.ObjectStorageOptions{URL: "mem:", InlineBytes: 10})
	if err != nil {
		t.Fatal(err)
	}
	return m, b
}

// memStore holds one object, whatever its key.
type memStore struct{ data []byte }

func (m *memStore) Write(_ context.Context, _ uuid.UUID, _ int64, r io.Reader) (err error) {
	m.data, err = io.ReadAll(r)
	return err
}

func (m *memStore) Read(_ context.Context, _ uuid.UUID, offset int64) (io.ReadCloser, int64, error) {
	if m.data == nil {
		return nil, 0, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(m.data[offset:])), int64(len(m.data)), nil
}
func (m *memStore) Delete(context.Context, uuid.UUID) error { m.data = nil; return nil }
func (m *memStore) SignedURL(context.Context, uuid.UUID, time.Duration) (string, error) {
	return "", nil
}
func (m *memStore) Close() error { return nil }

func TestObjectStorage_CannotBeMadeOnADatabaseThatFails(t *testing.T) {
	t.Parallel()
	for step, want := range []error{errDatabase, errDatabase, errStore, errDatabase, errStore} {
		open := func(context.Context, string, uuid.UUID) (pendinguploads.ObjectStore, error) {
			if step == 2 {
				return nil, errStore
			}
			return brokenStore{&memStore{}}, nil
		}
		m := newMockedMatching(t, testLimits, sqlmock.QueryMatcherRegexp)
		register := m.db.ExpectQuery("INSERT INTO upload_stores")
		if step == 0 {
			register.WillReturnError(errDatabase)
		} else {
			register.WillReturnRows(sqlmock.NewRows([]string{"id"}).AddRow(7))
			find := m.db.ExpectQuery("SELECT url, namespace")
			if step == 1 {
				find.WillReturnError(errDatabase)
			} else {
				find.WillReturnRows(sqlmock.NewRows([]string{"url", "namespace"}).AddRow("mem:", uuid.NewString()))
			}
		}
		if step > 2 {
			m.db.ExpectQuery("SELECT array").WillReturnError(when(step == 3)).WillReturnRows(sqlmock.NewRows([]string{"array"}).AddRow("{" + uuid.NewString() + "}"))
		}
		if _, err := pendinguploads.NewObjectStorage(t.Context(), m.Postgres, open, pendinguploads.ObjectStorageOptions{URL: "mem:"}); !errors.Is(err, want) {
			t.Errorf("step %d: %v, want %v", step, err, want)
		}
	}
}

// brokenStore cannot be read.
type brokenStore struct{ *memStore }

func (brokenStore) Read(context.Context, uuid.UUID, int64) (io.ReadCloser, int64, error) {
	return nil, 0, errStore
}

func TestObjectStorage_StagesNothingOnADatabaseThatFails(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"intend", "begin", "insert", "append", "commit"} {
		store := &memStore{}
		m, b := newMockedObjectStorage(t, store)
		failing := func(name string) (err error) {
			if name == step {
				return errDatabase
			}
			return nil
		}
		steps := []string{"intend", "begin", "insert", "append", "commit"}
		for _, s := range steps[:slices.Index(steps, step)+1] {
			err := failing(s)
			switch s {
			case "intend":
				m.sessions.ExpectExec("INSERT INTO upload_objects").WillReturnResult(driver.RowsAffected(1)).WillReturnError(err)
			case "begin":
				m.staging.ExpectBegin().WillReturnError(err)
			case "insert":
				e := m.staging.ExpectQuery("WITH file AS")
				if err != nil {
					e.WillReturnError(err)
				} else {
					e.WillReturnRows(sqlmock.NewRows([]string{"file_id", "created_at", "expires_at"}).AddRow(fileIDs[0].String(), createdAt, expiresAt))
				}
			case "append":
				m.staging.ExpectExec(appendRows).WillReturnResult(driver.RowsAffected(1)).WillReturnError(err)
			case "commit":
				m.staging.ExpectCommit().WillReturnError(err)
			}
		}
		if step == "insert" || step == "append" {
			m.staging.ExpectRollback()
		}
		if step != "intend" && step != "commit" {
			m.db.ExpectExec("UPDATE upload_objects SET garbage_at = least").WillReturnResult(driver.RowsAffected(1))
		}
		if staged, err := b.Stage(t.Context(), workspaceID, []pendinguploads.NewFile{newFile("a.txt", content(20))}); staged != nil || !errors.Is(err, errDatabase) {
			t.Errorf("%s fails: %d files, %v", step, len(staged), err)
		}
		if kept := store.data != nil; kept != (step == "commit") {
			t.Errorf("%s fails: the object is kept: %t", step, kept)
		}
	}
}

func TestObjectStorage_SweepReportsADatabaseThatFails(t *testing.T) {
	t.Parallel()
	garbage := func() *sqlmock.Rows { return sqlmock.NewRows([]string{"object_key", "store_id"}) }
	for name, plant := range map[string]func(sqlmock.Sqlmock){
		"the rows":  nil,
		"the claim": func(m sqlmock.Sqlmock) { m.ExpectQuery("UPDATE upload_objects").WillReturnError(errDatabase) },
		"a bad answer": func(m sqlmock.Sqlmock) {
			m.ExpectQuery("UPDATE upload_objects").WillReturnRows(garbage().AddRow("x", 7))
		},
		"forgetting": func(m sqlmock.Sqlmock) {
			m.ExpectQuery("UPDATE upload_objects").WillReturnRows(garbage().AddRow(uuid.NewString(), 7))
			m.ExpectExec("DELETE FROM upload_objects").WillReturnError(errDatabase)
		},
	} {
		m, b := newMockedObjectStorage(t, &memStore{})
		if plant == nil {
			m.db.ExpectQuery("WITH picked").WillReturnError(errDatabase)
		} else {
			for range 2 {
				m.db.ExpectQuery("WITH picked").WillReturnRows(sqlmock.NewRows([]string{"n", "bytes", "picked"}).AddRow(0, 0, 0))
			}
			m.db.ExpectExec("DELETE FROM upload_reservations").WillReturnResult(driver.RowsAffected(0))
			m.db.ExpectExec("DELETE FROM upload_keys").WillReturnResult(driver.RowsAffected(0))
			plant(m.db)
		}
		if _, err := b.Sweep(t.Context(), time.Hour); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	// While there are more rows to sweep, a failure to sweep objects is not reported yet. Planted: the
	// error returned, which ends the sweep.
	m, b := newMockedObjectStorage(t, &memStore{})
	for _, n := range []int{200, 0} {
		m.db.ExpectQuery("WITH picked").WillReturnRows(sqlmock.NewRows([]string{"n", "bytes", "picked"}).AddRow(n, n, n))
	}
	m.db.ExpectExec("DELETE FROM upload_reservations").WillReturnResult(driver.RowsAffected(0))
	m.db.ExpectExec("DELETE FROM upload_keys").WillReturnResult(driver.RowsAffected(0))
	m.db.ExpectQuery("UPDATE upload_objects").WillReturnError(errDatabase)
	if s, err := b.Sweep(t.Context(), time.Hour); err != nil || s.Acked != 200 || !s.More {
		t.Errorf("swept %+v, %v", s, err)
	}
	m = newMockedMatching(t, testLimits, sqlmock.QueryMatcherRegexp)
	m.db.ExpectQuery("SELECT count").WillReturnError(errDatabase)
	if _, err := pendinguploads.ReadGarbage(t.Context(), m.pool); !errors.Is(err, errDatabase) {
		t.Error(err)
	}
}

// found returns the row that locate reads: a file of size bytes with an object in the store.
func found(size int, store any) *sqlmock.Rows {
	sum := sha256.Sum256(content(size))
	return sqlmock.NewRows([]string{"file_id", "filename", "mimetype", "size_bytes", "sha256", "created_at", "fetched_at", "acked_at", "expires_at", "content", "object_key", "store_id"}).
		AddRow(fileIDs[0].String(), "a.txt", "text/plain", size, sum[:], createdAt, nil, nil, expiresAt, []byte{}, uuid.NewString(), store)
}

func TestObjectStorage_AStoreThatCannotBeOpenedFailsOnlyItsFiles(t *testing.T) {
	t.Parallel()
	m, b := newMockedObjectStorage(t, &memStore{})
	m.db.ExpectQuery("SELECT file_id").WillReturnRows(found(20, 9))
	m.db.ExpectQuery("SELECT url, namespace").WithArgs(9).WillReturnError(errDatabase)
	if _, _, err := b.SignedURL(t.Context(), workspaceID, fileIDs[0]); !errors.Is(err, errDatabase) {
		t.Errorf("SignedURL: %v", err)
	}
	m.db.ExpectQuery("SELECT file_id").WillReturnRows(found(20, 9))
	_, c, err := b.Open(t.Context(), workspaceID, fileIDs[0])
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		m.db.ExpectQuery("SELECT url, namespace").WithArgs(9).WillReturnError(errDatabase)
	}
	if n, err := c.Read(nil); n != 0 || err != nil {
		t.Errorf("nothing read: %d, %v", n, err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, errDatabase) {
		t.Errorf("read: %d, %v", n, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read when closed: %d, %v", n, err)
	}
}

// Uploads that are running when the platform stops find their store closed.
func TestObjectStorage_AClosedStorageOpensItsStoreAgain(t *testing.T) {
	t.Parallel()
	m, b := newMockedObjectStorage(t, &memStore{})
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	m.sessions.ExpectExec("INSERT INTO upload_objects").WillReturnResult(driver.RowsAffected(1))
	m.db.ExpectQuery("SELECT url, namespace").WithArgs(7).WillReturnError(errDatabase)
	m.db.ExpectExec("UPDATE upload_objects SET garbage_at = least").WillReturnResult(driver.RowsAffected(1))
	m.db.ExpectQuery("SELECT url, namespace").WithArgs(7).WillReturnError(errDatabase)
	if _, err := b.Stage(t.Context(), workspaceID, []pendinguploads.NewFile{newFile("a.txt", content(20))}); !errors.Is(err, errDatabase) {
		t.Error(err)
	}
}

func TestObjectStorage_MoveReportsWhatFails(t *testing.T) {
	t.Parallel()
	file := pendinguploads.File{ID: fileIDs[0], Workspace: workspaceID, Size: 20}
	steps := []string{"find", "intend", "begin", "flip", "late", "gone", "commit"}
	for _, step := range steps {
		store := &memStore{data: content(20)}
		m, b := newMockedObjectStorage(t, store)
		find := m.db.ExpectQuery("SELECT file_id")
		if step == "find" {
			find.WillReturnError(errDatabase)
		} else {
			find.WillReturnRows(found(20, 9))
			m.sessions.ExpectExec("INSERT INTO upload_objects").WillReturnResult(driver.RowsAffected(1)).WillReturnError(when(step == "intend"))
		}
		if step != "find" && step != "intend" {
			m.db.ExpectQuery("SELECT url, namespace").WithArgs(9).WillReturnRows(sqlmock.NewRows([]string{"url", "namespace"}).AddRow("mem:", uuid.NewString()))
			m.staging.ExpectBegin().WillReturnError(when(step == "begin"))
		}
		flip := func(moved, claimed int) {
			m.staging.ExpectQuery("WITH moved").WillReturnRows(sqlmock.NewRows([]string{"moved", "claimed"}).AddRow(moved, claimed))
		}
		switch step {
		case "flip":
			m.staging.ExpectQuery("WITH moved").WillReturnError(errDatabase)
			m.staging.ExpectRollback()
		case "late":
			flip(1, 0)
			m.staging.ExpectRollback()
		case "gone":
			flip(0, 0)
			m.staging.ExpectRollback()
		case "commit":
			flip(1, 1)
			m.staging.ExpectCommit().WillReturnError(errDatabase)
		}
		if step != "find" && step != "commit" {
			m.db.ExpectExec("UPDATE upload_objects SET garbage_at = least").WillReturnResult(driver.RowsAffected(1))
		}
		moved, err := b.Move(t.Context(), file)
		if moved || (err == nil) != (step == "gone") {
			t.Errorf("%s: moved %t, %v", step, moved, err)
		}
		if step == "commit" && store.data == nil {
			t.Error("the object was deleted, though the file may have it")
		}
	}
}

func when(fails bool) error {
	if fails {
		return errDatabase
	}
	return nil
}

func TestObjectStorage_MoveIntoTheDatabaseReportsWhatFails(t *testing.T) {
	t.Parallel()
	const size = 2<<20 + 1
	for step, data := range map[string][]byte{
		"begin": content(size), "missing": nil, "short": content(size)[:pendinguploads.ChunkBytes+1], "chunk": content(size),
		"digest": append([]byte("other"), content(size)[5:]...), "flip": content(size), "gone": content(size), "commit": content(size),
	} {
		m := newMockedMatching(t, testLimits, sqlmock.QueryMatcherRegexp)
		store := &memStore{data: data}
		b, err := pendinguploads.NewObjectStorage(t.Context(), m.Postgres, func(context.Context, string, uuid.UUID) (pendinguploads.ObjectStore, error) {
			return lying{store, size}, nil
		},
			pendinguploads.ObjectStorageOptions{})
		if err != nil {
			t.Fatal(err)
		}
		m.db.ExpectQuery("SELECT file_id").WillReturnRows(found(size, 9))
		m.staging.ExpectBegin().WillReturnError(when(step == "begin"))
		if step != "begin" {
			m.db.ExpectQuery("SELECT url, namespace").WithArgs(9).WillReturnRows(sqlmock.NewRows([]string{"url", "namespace"}).AddRow("mem:", uuid.NewString()))
		}
		chunks := map[string]int{"chunk": 1, "digest": 2, "flip": 2, "gone": 2, "commit": 2}[step]
		for i := range chunks {
			m.staging.ExpectExec("INSERT INTO pending_upload_chunks").WillReturnResult(driver.RowsAffected(1)).WillReturnError(when(step == "chunk" && i == 0))
		}
		if step == "flip" || step == "gone" || step == "commit" {
			n := map[string]int64{"commit": 1}[step]
			m.staging.ExpectExec("WITH moved").WillReturnResult(driver.RowsAffected(n)).WillReturnError(when(step == "flip"))
		}
		if step == "commit" {
			m.staging.ExpectCommit().WillReturnError(errDatabase)
		} else if step != "begin" {
			m.staging.ExpectRollback()
		}
		moved, err := b.Move(t.Context(), pendinguploads.File{ID: fileIDs[0], Workspace: workspaceID})
		if moved && step != "commit" || (err == nil) != (step == "gone") {
			t.Errorf("%s: moved %t, %v", step, moved, err)
		}
		if step == "digest" && !errors.Is(err, pendinguploads.ErrDigestMismatch) || step == "missing" && !errors.Is(err, pendinguploads.ErrTruncated) {
			t.Errorf("%s: %v", step, err)
		}
	}
}

// lying reports a wrong size of its object.
type lying struct {
	*memStore
	size int64
}

func (l lying) Read(ctx context.Context, key uuid.UUID, offset int64) (io.ReadCloser, int64, error) {
	body, _, err := l.memStore.Read(ctx, key, min(offset, int64(len(l.data))))
	return body, l.size, err
}

func TestObjectStorage_ListsOfMisplacedFilesReportWhatFails(t *testing.T) {
	t.Parallel()
	m, b := newMockedObjectStorage(t, &memStore{})
	m.db.ExpectQuery("SELECT count").WillReturnError(errDatabase)
	if _, _, err := b.CountMisplaced(t.Context()); !errors.Is(err, errDatabase) {
		t.Error(err)
	}
	m.db.ExpectQuery("SELECT workspace_id").WillReturnError(errDatabase)
	m.db.ExpectQuery("SELECT workspace_id").WillReturnRows(sqlmock.NewRows([]string{"workspace_id"}).AddRow("x"))
	columns := []string{"workspace_id", "file_id", "filename", "mimetype", "size_bytes", "sha256", "created_at", "fetched_at", "acked_at", "expires_at"}
	m.db.ExpectQuery("SELECT workspace_id").WillReturnRows(sqlmock.NewRows(columns).RowError(0, errDatabase).
		AddRow(workspaceID.String(), fileIDs[0].String(), "a.txt", "text/plain", 20, make([]byte, 32), createdAt, nil, nil, expiresAt))
	for range 3 {
		if _, err := b.Misplaced(t.Context(), uuid.Nil, 10); err == nil {
			t.Error("no error")
		}
	}
}

// Planted: Reclaim that does nothing.
func TestObjectStorage_ReclaimsTheSpaceOfTheDatabase(t *testing.T) {
	t.Parallel()
	m, b := newMockedObjectStorage(t, &memStore{})
	m.sessions.ExpectQuery("SELECT set_config").WillReturnRows(sqlmock.NewRows([]string{""}).AddRow(true))
	m.sessions.ExpectExec("VACUUM").WillReturnResult(driver.RowsAffected(0))
	m.sessions.ExpectExec("SELECT pg_advisory_unlock_all").WillReturnResult(driver.RowsAffected(0))
	if err := b.Reclaim(t.Context()); err != nil {
		t.Error(err)
	}
}
