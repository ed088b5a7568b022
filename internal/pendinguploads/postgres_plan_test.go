package pendinguploads

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

// The statements of clients and of the sweep cost the same however many files there are. Planted: each
// index of the table dropped; the workspace left out of the list.
func TestStatements_FindFilesByIndex(t *testing.T) {
	t.Parallel()
	db := pgtest.Open(t, pgtest.New(t))
	for _, statement := range []string{
		`INSERT INTO pending_uploads (workspace_id, filename, mimetype, size_bytes, sha256, content, created_at, expires_at, acked_at)
			SELECT md5((i % 5000)::text)::uuid, 'a.txt', 'text/plain', 5, decode(repeat('00', 32), 'hex'), 'hello', now() - i * interval '1 second',
				now() + (20000 - i) * interval '1 second', CASE WHEN i % 3 = 0 THEN now() - i * interval '1 second' END
			FROM generate_series(1, 20000) i`,
		`INSERT INTO pending_upload_chunks SELECT file_id, 1, 'x' FROM pending_uploads`,
		`INSERT INTO upload_reservations (workspace_id, files, bytes, expires_at) SELECT workspace_id, 1, 5, max(expires_at) FROM pending_uploads GROUP BY workspace_id`,
		`INSERT INTO upload_stores (url) VALUES ('file:///a')`,
		`INSERT INTO upload_objects (object_key, store_id, size_bytes, file_id, garbage_at)
			SELECT md5(i::text)::uuid, 1, 5, gen_random_uuid(), CASE WHEN i % 100 = 0 THEN now() - i * interval '1 second' END FROM generate_series(1, 20000) i`,
		`VACUUM ANALYZE`,
	} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	const (
		file    = "Index Scan of pending_uploads by pending_uploads_pkey"
		chunk   = "Index Scan of pending_upload_chunks by pending_upload_chunks_pkey"
		unacked = "Index Scan of pending_uploads by pending_uploads_unacked"
		acked   = "Index Scan of pending_uploads by pending_uploads_acked_list"
	)
	batch := []string{"Bitmap Heap Scan of pending_uploads", "Bitmap Index Scan by pending_uploads_pkey"} // of the files that are deleted, at most sweepFiles
	id, workspace, now := uuid.New(), uuid.New(), time.Now().Format(time.RFC3339)
	for name, c := range map[string]struct {
		statement string
		args      []any
		want      []string
	}{
		"open":          {sqlOpen, []any{id, workspace, 1}, []string{file}},
		"first row":     {sqlReadFirst, []any{id}, []string{file}},
		"chunk":         {sqlReadChunk, []any{id, 1}, []string{chunk}},
		"get":           {sqlGet, []any{id, workspace}, []string{file}},
		"fetched":       {sqlMarkFetched, []any{id, workspace}, []string{file}},
		"ack":           {sqlAck, []any{id, workspace}, []string{file}},
		"list unacked":  {sqlListUnacked, []any{workspace, 100, "-infinity", uuid.Nil}, []string{unacked}},
		"list more":     {sqlListUnacked, []any{workspace, 100, now, id}, []string{unacked}},
		"list acked":    {sqlListAcked, []any{workspace, 100, "-infinity", uuid.Nil}, []string{acked}},
		"acked more":    {sqlListAcked, []any{workspace, 100, now, id}, []string{acked}},
		"list all":      {sqlListAll, []any{workspace, 100, "-infinity", uuid.Nil}, []string{acked, unacked}},
		"all more":      {sqlListAll, []any{workspace, 100, now, id}, []string{acked, unacked}},
		"sweep acked":   {sqlSweepAcked, []any{1, 1, 1}, append(slices.Clone(batch), "Index Scan of pending_uploads by pending_uploads_acked", "Sort")},
		"sweep expired": {sqlSweepExpired, []any{1, 1, 1}, append(slices.Clone(batch), "Index Scan of pending_uploads by pending_uploads_expiry", "Sort")},
	} {
		if got := pgtest.Scans(t, db, c.statement, c.args...); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	for name, c := range map[string]struct {
		statement string
		args      []any
	}{
		"open any": {sqlOpenAny, []any{id, workspace, 1}}, "garbage": {sqlClaimGarbage, []any{1, 1}}, "count garbage": {sqlGarbage, nil},
		"forget": {sqlDeleteObjects, []any{"{" + id.String() + "}"}}, "move out": {sqlMoveOut, []any{id, id, id, 1}},
	} {
		for _, scan := range pgtest.Scans(t, db, c.statement, c.args...) {
			if strings.HasPrefix(scan, "Seq Scan") {
				t.Errorf("%s: %q", name, scan)
			}
		}
	}
	// Which kind of scan depends on how much of the table was vacuumed.
	for _, scan := range pgtest.Scans(t, db, sqlUsage, workspace) {
		if _, index, _ := strings.Cut(scan, " by "); !strings.Contains(scan, "Bitmap Heap") && index != "pending_uploads_usage" && index != "upload_reservations_workspace" {
			t.Errorf("usage: %q", scan)
		}
	}
}
