package activity

import (
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

// What pollers ask for all day costs the same however long the log is. Planted: no unique
// (workspace_id, seq); ORDER BY created_at.
func TestStatements_ReadTheLogByIndex(t *testing.T) {
	t.Parallel()
	db := pgtest.Open(t, pgtest.New(t))
	for _, statement := range []string{
		`INSERT INTO activity_counters SELECT gen_random_uuid(), 100 FROM generate_series(1, 500)`,
		`INSERT INTO activity_readers SELECT workspace_id, 50, now() FROM activity_counters`,
		`INSERT INTO activity_logs (workspace_id, seq, activity_type, method, created_at)
			SELECT workspace_id, n, 'a2a_receive', 'message/send', now() - (100 - n) * interval '1 minute' FROM activity_counters, generate_series(1, 100) n`,
		`VACUUM ANALYZE`,
	} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	const (
		pages  = "Index Scan of activity_logs by activity_logs_workspace_id_seq_key"
		cursor = "Index Scan of activity_logs by activity_logs_pkey"
		note   = "Index Scan of activity_readers by activity_readers_pkey"
		sort   = "Sort" // of the page, which is in order already
	)
	workspace, after := uuid.New(), uuid.NullUUID{UUID: uuid.New(), Valid: true}
	for name, c := range map[string]struct {
		q     Query
		notes bool
		want  []string
	}{
		"newest":              {Query{}, false, []string{pages}},
		"oldest":              {Query{Oldest: true}, false, []string{pages}},
		"of a type":           {Query{Type: TypeA2AReceive}, false, []string{pages}},
		"after a row":         {Query{After: after, Type: TypeA2AReceive}, false, []string{cursor, pages, sort}},
		"after a row, noting": {Query{After: after, Type: TypeA2AReceive}, true, []string{cursor, pages, note, sort}},
		"uploads after a row": {Query{After: after, Type: MethodChatUpload, Source: FromCanvas}, true, []string{cursor, pages, note, sort}},
	} {
		statement, args := c.q.page(workspace, c.notes)
		if got := pgtest.Scans(t, db, statement, args...); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
