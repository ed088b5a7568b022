package pendinguploads_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

const (
	sqlCountObjects = `SELECT count(*), count(*) FILTER (WHERE file_id IS NULL), count(*) FILTER (WHERE garbage_at IS NULL) FROM upload_objects`
	sqlDueObjects   = `UPDATE upload_objects SET garbage_at = now() - interval '1 second' WHERE garbage_at IS NOT NULL`
	sqlCountAll     = `SELECT (SELECT count(*) FROM pending_uploads), (SELECT count(*) FROM activity_logs), (SELECT count(*) FROM upload_reservations)`
)

var errStore = errors.New("the store fails")

// faults replace operations of a store; nil: the operation works.
type faults struct {
	write func(ctx context.Context, key uuid.UUID) error // after all was written
	read  func(offset int64) (io.ReadCloser, int64, error)
	del   func(ctx context.Context) error
	sign  func() (string, error)
}

// faultyStore is a real store with faults.
type faultyStore struct {
	pendinguploads.ObjectStore
	*faults
}

func (s faultyStore) Write(ctx context.Context, key uuid.UUID, size int64, content io.Reader) error {
	err := s.ObjectStore.Write(ctx, key, size, content)
	if err == nil && s.faults.write != nil {
		err = s.faults.write(ctx, key)
	}
	return err
}

func (s faultyStore) Read(ctx context.Context, key uuid.UUID, offset int64) (io.ReadCloser, int64, error) {
	if s.faults.read != nil {
		if body, size, err := s.faults.read(offset); body != nil || err != nil {
			return body, size, err
		}
	}
	return s.ObjectStore.Read(ctx, key, offset)
}

func (s faultyStore) Delete(ctx context.Context, key uuid.UUID) error {
	if s.del != nil {
		if err := s.del(ctx); err != nil {
			return err
		}
	}
	return s.ObjectStore.Delete(ctx, key)
}

func (s faultyStore) SignedURL(ctx context.Context, key uuid.UUID, validFor time.Duration) (string, error) {
	if s.sign != nil {
		return s.sign()
	}
	return s.ObjectStore.SignedURL(ctx, key, validFor)
}

// rig is an ObjectStorage on a database of its own, with faults.
type rig struct {
	*pendinguploads.ObjectStorage
	postgres *pendinguploads.Postgres
	db       *sql.DB
	staging  *sql.DB
	dir      string // of the folder; "": on another store
	faults   *faults
}

// newRig returns a rig on a folder, or on the store of url.
func newRig(t *testing.T, url string) *rig {
	t.Helper()
	dsn := pgtest.New(t)
	r := &rig{db: openPool(t, connector(t, dsn, false)), staging: openPool(t, connector(t, dsn, true)), faults: &faults{}}
	if url == "" {
		r.dir = t.TempDir()
		url = "file://" + r.dir
	}
	limits := testLimits
	limits.QuotaBytes, limits.QuotaFiles = 64<<20, 100
	r.postgres = pendinguploads.NewPostgres(r.db, r.staging, activity.New(r.db), limits)
	r.ObjectStorage = newObjectStorage(t, r.postgres, r.open, url)
	return r
}

func (r *rig) open(ctx context.Context, url string, namespace uuid.UUID) (pendinguploads.ObjectStore, error) {
	store, err := openStore(ctx, url, namespace)
	return faultyStore{store, r.faults}, err
}

// on returns another ObjectStorage on the same database, which writes new files to url.
func (r *rig) on(t *testing.T, url string) *pendinguploads.ObjectStorage {
	t.Helper()
	return newObjectStorage(t, r.postgres, r.open, url)
}

// stageSizes stages one upload with files of the given sizes.
func (r *rig) stageSizes(ctx context.Context, key string, sizes ...int) ([]pendinguploads.File, error) {
	var files []pendinguploads.NewFile
	for _, size := range sizes {
		files = append(files, newFile("a.bin", content(size)))
	}
	staged, _, err := r.StageOnce(ctx, workspaceID, key, files)
	return staged, err
}

// stageExpired stages files of the given sizes that have expired.
func (r *rig) stageExpired(t *testing.T, sizes ...int) {
	t.Helper()
	staged, err := r.stageSizes(t.Context(), "", sizes...)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range staged {
		if err := execute(r.db, sqlExpire)(t.Context(), f.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// content returns size bytes of which no two chunks are equal.
func content(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return b
}

// mustRead checks that the file has the content that stageSizes gave it.
func mustRead(t *testing.T, storage pendinguploads.Storage, f pendinguploads.File) {
	t.Helper()
	_, c, err := storage.Open(t.Context(), f.Workspace, f.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, content(int(f.Size))) {
		t.Errorf("read %d bytes of %d, %v", len(got), f.Size, err)
	}
}

// mustBeTraceless checks that there is no file, no inbox row and no reservation.
func (r *rig) mustBeTraceless(t *testing.T) {
	t.Helper()
	var files, rows, reservations int
	if err := r.db.QueryRow(sqlCountAll).Scan(&files, &rows, &reservations); err != nil || files+rows+reservations != 0 {
		t.Errorf("%d files, %d inbox rows, %d reservations (%v)", files, rows, reservations, err)
	}
}

// wantObjects checks the number of rows of objects, of those that a file claims, and of objects in the
// folder.
func (r *rig) wantObjects(t *testing.T, rows, visible, stored int) {
	t.Helper()
	var all, intents, claimed int
	if err := r.db.QueryRow(sqlCountObjects).Scan(&all, &intents, &claimed); err != nil || all != rows || claimed != visible {
		t.Errorf("%d rows of objects, %d without a file, %d claimed (%v); want %d, and %d claimed", all, intents, claimed, err, rows, visible)
	}
	if n := countFiles(t, r.dir); n != stored {
		t.Errorf("%d objects in the folder, want %d", n, stored)
	}
}

func countFiles(t *testing.T, dir string) (n int) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// sweepGarbage makes all garbage due and sweeps once.
func (r *rig) sweepGarbage(t *testing.T) error {
	t.Helper()
	if _, err := r.db.Exec(sqlDueObjects); err != nil {
		t.Fatal(err)
	}
	_, err := r.Sweep(t.Context(), time.Hour)
	return err
}

func failingRead(int64) (io.ReadCloser, int64, error) { return nil, 0, errStore }
