package pendinguploads

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

const (
	sqlLockKey = `SELECT pg_try_advisory_xact_lock(hashtextextended($1 || $2, 20260601))`

	sqlFindKey = `
SELECT fingerprint, files::text
FROM upload_keys
WHERE workspace_id = $1 AND key = $2 AND expires_at > now()`

	// Changes no value, but writes to the log. The commit then waits until the log has reached the
	// standby, and with it the first upload's commit, which may have reached only this server yet.
	sqlConfirmKey = `UPDATE upload_keys SET expires_at = expires_at WHERE workspace_id = $1 AND key = $2`

	// The row of an expired key may still be there.
	sqlInsertKey = `
INSERT INTO upload_keys (workspace_id, key, fingerprint, files, expires_at)
VALUES ($1, $2, $3, $4, clock_timestamp() + $5 * interval '1 microsecond')
ON CONFLICT (workspace_id, key) DO UPDATE
SET fingerprint = excluded.fingerprint, files = excluded.files, expires_at = excluded.expires_at`
)

// replay locks the key and returns the files of the first upload with it, or nil if there was none.
// The lock lasts until tx ends, so a crash releases it and no timeout is needed.
func (p *Postgres) replay(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, key string, files []NewFile) ([]File, error) {
	var locked bool
	if err := tx.QueryRowContext(ctx, sqlLockKey, workspace.String(), key).Scan(&locked); err != nil {
		return nil, fmt.Errorf("pendinguploads: lock key: %w", err)
	}
	if !locked {
		return nil, fmt.Errorf("pendinguploads: workspace %s: %w", workspace, ErrKeyInUse)
	}
	var stored digest
	var answer string
	err := tx.QueryRowContext(ctx, sqlFindKey, workspace, key).Scan(&stored, &answer)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pendinguploads: find key: %w", err)
	}
	if stored != fingerprint(files) {
		return nil, fmt.Errorf("pendinguploads: workspace %s: %w", workspace, ErrKeyReused)
	}
	var staged []File
	if err := json.Unmarshal([]byte(answer), &staged); err != nil {
		return nil, fmt.Errorf("pendinguploads: decode the answer stored with a key: %w", err)
	}
	return staged, nil
}

// confirmKey commits tx in a way that makes the first upload with the key as durable as the commit itself.
func confirmKey(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, key string) error {
	if _, err := tx.ExecContext(ctx, sqlConfirmKey, workspace, key); err != nil {
		return fmt.Errorf("pendinguploads: confirm key: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("pendinguploads: confirm key: %w", err)
	}
	return nil
}

// storeKey stores the answer with the key, as part of the transaction that commits the files.
func storeKey(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, key string, files []NewFile, staged []File) error {
	answer, err := json.Marshal(staged)
	if err != nil {
		return fmt.Errorf("pendinguploads: encode the answer to store with a key: %w", err)
	}
	sum := fingerprint(files)
	if _, err := tx.ExecContext(ctx, sqlInsertKey, workspace, key, sum[:], string(answer), KeyTTL.Microseconds()); err != nil {
		return fmt.Errorf("pendinguploads: store key: %w", err)
	}
	return nil
}

// fingerprint identifies an upload by its files. A hash of the request body would not do: its boundary
// changes when a client sends it again.
func fingerprint(files []NewFile) digest {
	h := sha256.New()
	for _, f := range files {
		// Neither a name nor a type contains a line break.
		fmt.Fprintf(h, "%s\n%s\n%d\n%x\n", f.Name, f.MIMEType, f.Size, f.SHA256)
	}
	return digest(h.Sum(nil))
}
