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

	sqlFindKey = `SELECT fingerprint, files::text FROM upload_keys WHERE workspace_id = $1 AND key = $2 AND expires_at > now()`

	// Changes nothing but the log, whose end the commit then waits for, and with it for the first upload's
	// commit: that one may be here and not on the standby yet.
	sqlConfirmKey = `UPDATE upload_keys SET expires_at = expires_at WHERE workspace_id = $1 AND key = $2`

	// A key whose time is over may still be there.
	sqlInsertKey = `INSERT INTO upload_keys (workspace_id, key, fingerprint, files, expires_at) ` +
		`VALUES ($1, $2, $3, $4, clock_timestamp() + $5 * interval '1 microsecond') ` +
		`ON CONFLICT (workspace_id, key) DO UPDATE SET fingerprint = excluded.fingerprint, files = excluded.files, expires_at = excluded.expires_at`
)

// replay returns what the first upload with this key returned, nil if this is the first. It
// takes the key for as long as tx lasts: a crash frees it, and no clock has to.
func (p *Postgres) replay(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, key string, files []NewFile) ([]File, error) {
	var free bool
	if err := tx.QueryRowContext(ctx, sqlLockKey, workspace.String(), key).Scan(&free); err != nil {
		return nil, fmt.Errorf("pendinguploads: lock key: %w", err)
	}
	if !free {
		return nil, fmt.Errorf("pendinguploads: workspace %s: %w", workspace, ErrKeyInUse)
	}
	var known digest
	var first string
	err := tx.QueryRowContext(ctx, sqlFindKey, workspace, key).Scan(&known, &first)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pendinguploads: find key: %w", err)
	}
	if known != fingerprint(files) {
		return nil, fmt.Errorf("pendinguploads: workspace %s: %w", workspace, ErrKeyReused)
	}
	var staged []File
	if err := json.Unmarshal([]byte(first), &staged); err != nil {
		return nil, fmt.Errorf("pendinguploads: first answer of a key: %w", err)
	}
	return staged, nil
}

// confirm makes sure that what was staged with a key is as durable as a commit can make it.
func confirm(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, key string) error {
	if _, err := tx.ExecContext(ctx, sqlConfirmKey, workspace, key); err != nil {
		return fmt.Errorf("pendinguploads: confirm key: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("pendinguploads: confirm key: %w", err)
	}
	return nil
}

// remember keeps the answer with the key, as part of the transaction that commits the files.
func remember(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, key string, files []NewFile, staged []File) error {
	answer, err := json.Marshal(staged)
	if err != nil {
		return fmt.Errorf("pendinguploads: keep the answer of a key: %w", err)
	}
	sum := fingerprint(files)
	if _, err := tx.ExecContext(ctx, sqlInsertKey, workspace, key, sum[:], string(answer), KeyTTL.Microseconds()); err != nil {
		return fmt.Errorf("pendinguploads: remember key: %w", err)
	}
	return nil
}

// fingerprint tells uploads apart by what is in them. Not by the body as it was sent: its
// boundary changes when a client sends it again.
func fingerprint(files []NewFile) digest {
	h := sha256.New()
	for _, f := range files {
		// Neither name nor type has a line break in it.
		fmt.Fprintf(h, "%s\n%s\n%d\n%x\n", f.Name, f.MIMEType, f.Size, f.SHA256)
	}
	return digest(h.Sum(nil))
}
