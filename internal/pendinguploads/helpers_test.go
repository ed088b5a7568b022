package pendinguploads_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"io"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

var testLimits = pendinguploads.Limits{MaxFileBytes: 8 << 20, MaxBatchBytes: 16 << 20, TTL: time.Hour}

// connector makes connections like the platform's: binary_parameters for writing content, none for
// everything else.
func connector(t *testing.T, dsn string, binary bool) *pq.Connector {
	t.Helper()
	config, err := pq.NewConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	config.BinaryParameters = binary
	c, err := pq.NewConnectorConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func openPool(t *testing.T, c driver.Connector) *sql.DB {
	t.Helper()
	db := sql.OpenDB(c)
	db.SetMaxOpenConns(8)
	db.SetMaxIdleConns(8)
	t.Cleanup(func() { db.Close() })
	return db
}

// newPostgres returns a storage on a database of its own, and the pool with which it reads.
func newPostgres(t *testing.T) (*pendinguploads.Postgres, *sql.DB) {
	t.Helper()
	dsn := pgtest.New(t)
	db := openPool(t, connector(t, dsn, false))
	return pendinguploads.NewPostgres(db, openPool(t, connector(t, dsn, true)), activity.New(db), testLimits), db
}

func newFile(name string, data []byte) pendinguploads.NewFile {
	return pendinguploads.NewFile{
		Name: name, MIMEType: "text/plain", Size: int64(len(data)), SHA256: sha256.Sum256(data), Content: bytes.NewReader(data),
	}
}

// stageBytes stages one file.
func stageBytes(t *testing.T, storage pendinguploads.Storage, data []byte) pendinguploads.File {
	t.Helper()
	staged, err := storage.Stage(t.Context(), uuid.New(), []pendinguploads.NewFile{newFile("a.txt", data)})
	if err != nil {
		t.Fatal(err)
	}
	return staged[0]
}

// execute returns a function that runs statement for one file.
func execute(db *sql.DB, statement string) func(context.Context, uuid.UUID) error {
	return func(ctx context.Context, id uuid.UUID) error {
		_, err := db.ExecContext(ctx, statement, id)
		return err
	}
}

// failingInbox writes nothing, and fails if fail is set.
type failingInbox struct{ fail bool }

func (f *failingInbox) Append(context.Context, *sql.Tx, uuid.UUID, ...activity.Entry) error {
	if f.fail {
		return errDatabase
	}
	return nil
}

// sideEffect calls do when it is first read.
type sideEffect struct {
	io.Reader
	do func()
}

func (s *sideEffect) Read(b []byte) (int, error) {
	if s.do != nil {
		s.do()
		s.do = nil
	}
	return s.Reader.Read(b)
}
