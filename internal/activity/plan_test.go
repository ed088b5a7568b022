package activity

import (
	"database/sql"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

// The cost of a poll must not grow with the log. Planted: no unique (workspace_id, seq);
// ORDER BY created_at.
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
		pages   = "Index Scan of activity_logs by activity_logs_workspace_id_seq_key"
		cursor  = "Index Scan of activity_logs by activity_logs_pkey"
		counter = "Index Scan of activity_counters by activity_counters_pkey"
		note    = "Index Scan of activity_readers by activity_readers_pkey"
	)
	workspace, id := uuid.New(), uuid.New()
	after := sql.NullInt64{Int64: 7, Valid: true}
	for _, q := range []Query{{}, {Oldest: true}, {Type: TypeA2AReceive}, {Type: MethodChatUpload, Source: FromCanvas}} {
		for _, a := range []sql.NullInt64{{}, after} {
			statement, args := q.page(workspace, a)
			if got := pgtest.Scans(t, db, statement, args...); !slices.Equal(got, []string{pages}) {
				t.Errorf("%+v after %v: %q, want %q", q, a, got, pages)
			}
		}
	}
	for notes, want := range map[bool][]string{false: {counter, cursor}, true: {counter, cursor, note}} {
		if got := pgtest.Scans(t, db, Query{Reader: true}.cursor(notes), id, workspace); !slices.Equal(got, want) {
			t.Errorf("cursor, noting %t: %q, want %q", notes, got, want)
		}
	}
}
