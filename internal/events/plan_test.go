package events

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

// The statements that run for every stream every few seconds and at every change must read a large
// table by index. Planted: no unique (workspace_id, seq).
func TestStatements_ReadByIndex(t *testing.T) {
	t.Parallel()
	db := pgtest.Open(t, pgtest.New(t))
	const fill = `INSERT INTO receipts (workspace_id, seq, kind, state, file_id, filename, size_bytes, at)
		SELECT md5((i % 500)::text)::uuid, CASE WHEN i % 10 > 0 THEN i END, 'acked', 'acked', gen_random_uuid(), 'a', 1, now() - i * interval '1 second'
		FROM generate_series(1, 50000) i`
	for _, statement := range []string{fill, `ANALYZE receipts`} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	workspace := uuid.New()
	for statement, args := range map[string][]any{
		sqlReadReceipts: {workspace, 5, 100}, sqlAssignNumbers: {workspace, assignBatchRows}, sqlNewestReceipts: {"{" + workspace.String() + "}"}, sqlLastReceipt: {workspace, 5}, sqlPrune: {int64(40_000_000_000), pruneBatchRows},
	} {
		rows, err := db.QueryContext(t.Context(), "EXPLAIN "+statement, args...)
		if err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
		var plan []string
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				t.Fatal(err)
			}
			plan = append(plan, line)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		if text := strings.Join(plan, "\n"); strings.Contains(text, "Seq Scan on receipts") || !strings.Contains(text, "Index") {
			t.Errorf("%s\n%s", statement, text)
		}
	}
}
