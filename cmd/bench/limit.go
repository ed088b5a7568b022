//go:build linux

package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"sync"

	"github.com/google/uuid"
)

// chunkBytes is the size of the chunks in which the platform stores files.
const chunkBytes = 1 << 20

// The statements of the limit: only what is necessary to store, read and acknowledge a file.
const (
	rawFile = `INSERT INTO pending_uploads (workspace_id, filename, mimetype, size_bytes, sha256, content, expires_at) ` +
		`VALUES ($1, 'bench.bin', 'application/octet-stream', $2, $3, $4, now() + interval '1 day') RETURNING file_id`
	rawChunk = `INSERT INTO pending_upload_chunks (file_id, seq, data) VALUES ($1, $2, $3)`
	rawRow   = `WITH counter AS (
		INSERT INTO activity_counters AS c (workspace_id, last_seq) VALUES ($1, 1)
		ON CONFLICT (workspace_id) DO UPDATE SET last_seq = c.last_seq + 1 RETURNING last_seq
	) INSERT INTO activity_logs (workspace_id, seq, activity_type, target_id, method, summary, request_body, body_bytes, status)
	SELECT $1, last_seq, 'a2a_receive', $1, 'chat_upload_receive', 'chat_upload_receive: bench.bin', $2::json, 200, 'ok' FROM counter`

	rawFirst  = `SELECT content FROM pending_uploads WHERE file_id = $1 AND workspace_id = $2 AND (acked_at IS NOT NULL OR expires_at > now())`
	rawChunks = `SELECT data FROM pending_upload_chunks WHERE file_id = $1 ORDER BY seq`
	rawNext   = `SELECT data FROM pending_upload_chunks WHERE file_id = $1 AND seq = $2`
	rawAck    = `UPDATE pending_uploads SET acked_at = now() WHERE file_id = $1 AND workspace_id = $2 AND acked_at IS NULL AND expires_at > now()`

	rawAccess = `SELECT t.id FROM workspace_tokens t JOIN workspaces w ON w.id = t.workspace_id ` +
		`WHERE t.token_hash = $1 AND t.revoked_at IS NULL AND w.id = $2 AND w.status <> 'removed'`
	rawPage = `SELECT id, seq, workspace_id, activity_type, source_id, target_id, method, summary, request_body, response_body, ` +
		`duration_ms, status, error_detail, created_at FROM activity_logs ` +
		`WHERE workspace_id = $1 AND activity_type = 'a2a_receive' AND seq > (SELECT seq FROM activity_logs WHERE id = $2 AND workspace_id = $1) ORDER BY seq LIMIT 100`
)

// statements caches prepared statements, the fastest way with lib/pq.
type statements struct {
	mu   sync.Mutex
	made map[*sql.DB]map[string]*sql.Stmt
}

var prepared = statements{made: map[*sql.DB]map[string]*sql.Stmt{}}

func (s *statements) get(db *sql.DB, query string) (*sql.Stmt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stmt := s.made[db][query]; stmt != nil {
		return stmt, nil
	}
	stmt, err := db.Prepare(query) // cached
	if err != nil {
		return nil, err
	}
	if s.made[db] == nil {
		s.made[db] = map[string]*sql.Stmt{}
	}
	s.made[db][query] = stmt
	return stmt, nil
}

const rawBody = `{"file_id":"00000000-0000-0000-0000-000000000000","name":"bench.bin","mimeType":"application/octet-stream","size":1024,` +
	`"uri":"platform-pending:00000000-0000-0000-0000-000000000000/00000000-0000-0000-0000-000000000000","sha256":"0000000000000000000000000000000000000000000000000000000000000000"}`

// rawStage inserts the rows of a file and its inbox row, as durably as the platform.
func (p *platform) rawStage(ctx context.Context, w workspace, data []byte) (file uuid.UUID, err error) {
	digest := [sha256.Size]byte{} // the limit does not compute it
	tx, err := p.writes.BeginTx(ctx, nil)
	if err != nil {
		return file, err
	}
	defer tx.Rollback() // after a commit it does nothing
	insert, err := prepared.get(p.writes, rawFile)
	if err != nil {
		return file, err
	}
	err = tx.StmtContext(ctx, insert).QueryRowContext(ctx, w.id, len(data), digest[:], data[:min(len(data), chunkBytes)]).Scan(&file)
	if err != nil {
		return file, err
	}
	chunk, err := prepared.get(p.writes, rawChunk)
	if err != nil {
		return file, err
	}
	inTx := tx.StmtContext(ctx, chunk)
	for seq := 1; seq*chunkBytes < len(data); seq++ {
		if _, err := inTx.ExecContext(ctx, file, seq, data[seq*chunkBytes:min(len(data), (seq+1)*chunkBytes)]); err != nil {
			return file, err
		}
	}
	row, err := prepared.get(p.writes, rawRow)
	if err != nil {
		return file, err
	}
	if _, err := tx.StmtContext(ctx, row).ExecContext(ctx, w.id, rawBody); err != nil {
		return file, err
	}
	return file, tx.Commit()
}

// rawRead reads the bytes of a file.
func (p *platform) rawRead(ctx context.Context, w workspace, file uuid.UUID, size int64) error {
	var got int64
	for _, q := range []struct {
		query string
		args  []any
	}{{rawFirst, []any{file, w.id}}, {rawChunks, []any{file}}} {
		if got == size && size > 0 {
			break // the file has no chunks
		}
		stmt, err := prepared.get(p.db, q.query)
		if err != nil {
			return err
		}
		rows, err := stmt.QueryContext(ctx, q.args...)
		if err != nil {
			return err
		}
		var data sql.RawBytes
		for rows.Next() {
			if err := rows.Scan(&data); err != nil {
				rows.Close()
				return err
			}
			got += int64(len(data))
		}
		if err := rows.Close(); err != nil {
			return err
		}
		if err := rows.Err(); err != nil {
			return err
		}
	}
	if got != size {
		return fmt.Errorf("%d bytes, want %d", got, size)
	}
	return nil
}

func (p *platform) rawAck(ctx context.Context, w workspace, file uuid.UUID) error {
	stmt, err := prepared.get(p.db, rawAck)
	if err != nil {
		return err
	}
	result, err := stmt.ExecContext(ctx, file, w.id)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		return fmt.Errorf("acknowledged %d files, %w", n, err)
	}
	return nil
}
