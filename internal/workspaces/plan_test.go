package workspaces

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

// A page costs what is on it, however many workspaces and files there are. Planted: the files of all workspaces grouped
// and joined; the page cut after the join.
func TestStatements_ListAPageByIndex(t *testing.T) {
	t.Parallel()
	db := pgtest.Open(t, pgtest.New(t))
	for _, statement := range []string{
		`INSERT INTO workspaces (created_at) SELECT now() - n * interval '1 second' FROM generate_series(1, 5000) n`,
		`INSERT INTO pending_uploads (workspace_id, content, filename, mimetype, size_bytes, sha256, expires_at)
			SELECT id, '', 'f', 'text/plain', 0, sha256(''), now() + interval '1 hour' FROM workspaces, generate_series(1, 4)`,
		`VACUUM ANALYZE`,
	} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	const page = "Index Scan of workspaces by workspaces_newest"
	for statement, args := range map[string][]any{
		sqlFirstPage: {101}, sqlNextPage: {101, time.Now().Add(-time.Hour).Format(time.RFC3339), uuid.New()},
	} {
		got := pgtest.Scans(t, db, statement, args...)
		perWorkspace := slices.ContainsFunc(got, func(scan string) bool {
			return strings.HasSuffix(scan, " by pending_uploads_unacked") || strings.HasSuffix(scan, " by pending_uploads_usage")
		})
		whole := slices.ContainsFunc(got, func(scan string) bool { return strings.HasPrefix(scan, "Seq Scan") })
		if !slices.Contains(got, page) || !perWorkspace || whole {
			t.Errorf("%q, want the page by %q, files by the index of a workspace, and no table read whole", got, page)
		}
	}
}
