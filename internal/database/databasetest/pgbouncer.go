// Package databasetest starts for tests what stands between a platform and its database.
package databasetest

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/testcluster"
)

// StartPgBouncer starts PgBouncer in transaction mode in front of the database of dsn, with the configuration of
// deploy/pgbouncer, at most so many sessions and further settings, and returns the URL through it. It stops with the test.
func StartPgBouncer(t testing.TB, dsn string, sessions int, settings ...string) string {
	t.Helper()
	dir, err := testcluster.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	_, file, _, _ := runtime.Caller(0)
	config := filepath.Join(filepath.Dir(file), "../../../deploy/pgbouncer/pgbouncer.ini")
	var log strings.Builder
	b, err := testcluster.StartPgBouncer(config, dir, dsn, sessions, &log, settings...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("PgBouncer:\n%s", log.String())
		}
	})
	return b.DatabaseURL
}
