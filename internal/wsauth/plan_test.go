package wsauth

import (
	"slices"
	"testing"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

// Every request starts with this lookup. Planted: token_hash not unique.
func TestStatements_FindTokensByIndex(t *testing.T) {
	t.Parallel()
	db := pgtest.Open(t, pgtest.New(t))
	for _, statement := range []string{
		`INSERT INTO workspaces (status) SELECT 'online' FROM generate_series(1, 5000)`,
		`INSERT INTO workspace_tokens (workspace_id, token_hash, prefix) SELECT id, sha256((id::text || n)::bytea), 'test' FROM workspaces, generate_series(1, 3) n`,
		`VACUUM ANALYZE`,
	} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"Index Scan of workspace_tokens by workspace_tokens_token_hash_key", "Index Scan of workspaces by workspaces_pkey"}
	if got := pgtest.Scans(t, db, sqlIdentify, "x"); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
