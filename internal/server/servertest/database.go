package servertest

import (
	"testing"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/schema"
)

// DatabaseBeforeStaging makes a database with the schema before staging and returns its connection string.
func DatabaseBeforeStaging(t testing.TB) string {
	t.Helper()
	dsn := pgtest.New(t)
	db := pgtest.Open(t, dsn)
	for {
		status, err := schema.Read(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		if staging, err := status.Staging(); err == nil && !staging {
			return dsn
		}
		if _, err := schema.Down(t.Context(), db, 1); err != nil {
			t.Fatal(err)
		}
	}
}
