package activity

import (
	"database/sql"
	"slices"
	"testing"
	"time"

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
		`INSERT INTO activity_logs (workspace_id, seq, activity_type, method, source_id, target_id, created_at)
			SELECT workspace_id, n, CASE WHEN n % 20 = 0 THEN 'a2a_send' ELSE 'a2a_receive' END, CASE WHEN n % 3 = 0 THEN 'chat_upload_receive' ELSE 'message/send' END,
				CASE WHEN n % 2 = 0 THEN md5((n % 14)::text)::uuid END, CASE WHEN n % 20 = 0 THEN md5('peer')::uuid ELSE workspace_id END,
				now() - (100 - n) * interval '1 minute' FROM activity_counters, generate_series(1, 100) n`,
		`VACUUM ANALYZE`,
	} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	const (
		pages   = "Index Scan of activity_logs by activity_logs_workspace_id_seq_key"
		times   = "Index Scan of activity_logs by activity_logs_workspace_time"
		types   = "Index Scan of activity_logs by activity_logs_type"
		uploads = "Index Scan of activity_logs by activity_logs_uploads"
		sources = "Index Scan of activity_logs by activity_logs_source"
		canvas  = "Index Scan of activity_logs by activity_logs_canvas"
		targets = "Index Scan of activity_logs by activity_logs_target"
		cursor  = "Index Scan of activity_logs by activity_logs_pkey"
		counter = "Index Scan of activity_counters by activity_counters_pkey"
		note    = "Index Scan of activity_readers by activity_readers_pkey"
	)
	workspace, id := uuid.New(), uuid.New()
	after := sql.NullInt64{Int64: 7, Valid: true}
	peer := uuid.NullUUID{UUID: id, Valid: true}
	now, minute := time.Now(), time.Minute
	for _, c := range []struct {
		query Query
		want  []string
	}{
		{Query{}, []string{pages}},
		{Query{Oldest: true}, []string{pages}},
		{Query{Type: TypeA2AReceive}, []string{pages}},
		{Query{Type: "a2a_send"}, []string{types}},
		{Query{Type: MethodChatUpload}, []string{uploads}},
		{Query{Source: FromCanvas}, []string{canvas}},
		{Query{Source: FromAgent}, []string{pages}},
		{Query{Peer: peer}, []string{sources, targets}},
		{Query{Peer: uuid.NullUUID{UUID: workspace, Valid: true}}, []string{sources, pages}},
		{Query{Before: now}, []string{pages, times}},
		{Query{Within: minute}, []string{pages, times}},
		{Query{Before: now, Within: minute}, []string{pages, times}},
		{Query{Peer: peer, Before: now}, []string{sources, targets, times}},
		{Query{Type: "a2a_send", Before: now}, []string{times, types}},
	} {
		for _, a := range []sql.NullInt64{{}, after} {
			statement, args := c.query.page(workspace, a)
			for i, arg := range args {
				if at, ok := arg.(time.Time); ok {
					args[i] = at.Format(time.RFC3339Nano)
				}
			}
			got := pgtest.Scans(t, db, statement, args...)
			slices.Sort(got)
			slices.Sort(c.want)
			if !slices.Equal(got, c.want) {
				t.Errorf("%+v after %v: %q, want %q", c.query, a, got, c.want)
			}
		}
	}
	for notes, want := range map[bool][]string{false: {counter, cursor}, true: {counter, cursor, note}} {
		if got := pgtest.Scans(t, db, Query{Reader: true}.cursor(notes), id, workspace); !slices.Equal(got, want) {
			t.Errorf("cursor, noting %t: %q, want %q", notes, got, want)
		}
	}
}
