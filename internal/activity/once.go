package activity

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

const (
	// keyTTL is how long a message that is sent again is recognized.
	keyTTL = 24 * time.Hour

	// sweepBatchKeys bounds one batch of SweepKeys.
	sweepBatchKeys = 1000

	// sqlTakeKey takes a key for a row, unless the row of an earlier message has it. It writes either way, so that the
	// commit makes the earlier message as durable as this one. A claim is of the time when the workspace was called.
	sqlTakeKey = `
INSERT INTO message_keys AS k (workspace_id, digest, claim, expires_at)
VALUES ($1, $2, $3, clock_timestamp() + $4 * interval '1 microsecond')
ON CONFLICT (workspace_id, digest) DO UPDATE SET
    claim = CASE WHEN k.expires_at <= now() OR k.claimed_until IS NOT NULL THEN excluded.claim ELSE k.claim END,
    expires_at = CASE WHEN k.expires_at <= now() OR k.claimed_until IS NOT NULL THEN excluded.expires_at ELSE k.expires_at END,
    answer_status = CASE WHEN k.expires_at <= now() THEN NULL ELSE k.answer_status END,
    claimed_until = NULL
RETURNING claim = $3`

	// sqlClaimKey claims a key for a call, unless another call with it runs or has succeeded.
	sqlClaimKey = `
INSERT INTO message_keys AS k (workspace_id, digest, claim, claimed_until, expires_at)
VALUES ($1, $2, $3, clock_timestamp() + $4 * interval '1 microsecond', clock_timestamp() + $5 * interval '1 microsecond')
ON CONFLICT (workspace_id, digest) DO UPDATE SET claim = excluded.claim, claimed_until = excluded.claimed_until,
    answer_status = NULL, answer_type = NULL, answer_body = NULL, expires_at = excluded.expires_at
WHERE k.expires_at <= now() OR k.answer_status IS NULL AND coalesce(k.claimed_until, '-infinity') <= now()
RETURNING true`

	sqlKeyAnswer = `
SELECT answer_status, answer_type, answer_body FROM message_keys
WHERE workspace_id = $1 AND digest = $2 AND answer_status IS NOT NULL AND expires_at > now()`

	sqlStoreAnswer = `
UPDATE message_keys SET claimed_until = NULL, answer_status = $4, answer_type = $5, answer_body = $6
WHERE workspace_id = $1 AND digest = $2 AND claim = $3`

	sqlReleaseKey = `DELETE FROM message_keys WHERE workspace_id = $1 AND digest = $2 AND claim = $3`

	// A key that is being taken again at this moment is locked, and so it stays.
	sqlSweepKeys = `
DELETE FROM message_keys WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM message_keys WHERE expires_at <= now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
))`
)

// ErrCallRunning means that the workspace is being called with the very message.
var ErrCallRunning = errors.New("activity: the workspace is being called with this message")

// A Key identifies a message of one sender, whatever the id of its envelope.
type Key [32]byte

// A Claim is the right to call a workspace with a message.
type Claim struct {
	key Key
	id  uuid.UUID
}

// An Answer is what a workspace answered to a message.
type Answer struct {
	Status      int
	ContentType string
	Body        []byte
}

// RecordOnce is Record, unless a message with the key was recorded in the last 24 hours. It reports whether it
// recorded the entry; either way an entry with the key is durable. On the schema before staging it is Record.
func (in *Inbox) RecordOnce(ctx context.Context, workspace uuid.UUID, key Key, e Entry) (recorded bool, err error) {
	if !in.notes {
		return true, in.Record(ctx, workspace, e)
	}
	err = in.transact(ctx, workspace, func(tx *sql.Tx) error {
		row := tx.QueryRowContext(ctx, sqlTakeKey, workspace, key[:], uuid.New(), keyTTL.Microseconds())
		if err := row.Scan(&recorded); err != nil {
			return fmt.Errorf("activity: take a message's key for workspace %s: %w", workspace, err)
		}
		if !recorded {
			return nil
		}
		return in.Append(ctx, tx, workspace, e)
	})
	return recorded && err == nil, err
}

// ClaimCall claims a message for a call that takes at most as long as given. If an earlier call has succeeded in the
// last 24 hours, it returns that call's answer instead; while one is running, ErrCallRunning. A claim whose platform
// has crashed ends by itself. On the schema before staging every claim succeeds.
func (in *Inbox) ClaimCall(ctx context.Context, workspace uuid.UUID, key Key, longest time.Duration) (Claim, *Answer, error) {
	claim := Claim{key: key, id: uuid.New()}
	if !in.notes {
		return claim, nil, nil
	}
	var claimed bool
	err := in.db.QueryRowContext(ctx, sqlClaimKey, workspace, key[:], claim.id, longest.Microseconds(), keyTTL.Microseconds()).Scan(&claimed)
	if err == nil {
		return claim, nil, nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return Claim{}, nil, fmt.Errorf("activity: claim a message for workspace %s: %w", workspace, err)
	}
	var answer Answer
	err = in.db.QueryRowContext(ctx, sqlKeyAnswer, workspace, key[:]).Scan(&answer.Status, &answer.ContentType, &answer.Body)
	if errors.Is(err, sql.ErrNoRows) {
		return Claim{}, nil, fmt.Errorf("activity: workspace %s: %w", workspace, ErrCallRunning)
	}
	if err != nil {
		return Claim{}, nil, fmt.Errorf("activity: read the answer to a message of workspace %s: %w", workspace, err)
	}
	return Claim{}, &answer, nil
}

// RecordCall is Record for a claimed call. In the same transaction it keeps the answer for those who send the message
// again, or, if answer is nil, ends the claim, so that they cause another call.
func (in *Inbox) RecordCall(ctx context.Context, workspace uuid.UUID, claim Claim, answer *Answer, e Entry) error {
	if !in.notes {
		return in.Record(ctx, workspace, e)
	}
	return in.transact(ctx, workspace, func(tx *sql.Tx) error {
		var err error
		if answer == nil {
			_, err = tx.ExecContext(ctx, sqlReleaseKey, workspace, claim.key[:], claim.id)
		} else {
			_, err = tx.ExecContext(ctx, sqlStoreAnswer, workspace, claim.key[:], claim.id, answer.Status, answer.ContentType, answer.Body)
		}
		if err != nil {
			return fmt.Errorf("activity: end the claim of a message of workspace %s: %w", workspace, err)
		}
		return in.Append(ctx, tx, workspace, e)
	})
}

// SweepKeys deletes one batch of expired keys, and reports whether there may be more.
func (in *Inbox) SweepKeys(ctx context.Context) (more bool, err error) {
	result, err := in.db.ExecContext(ctx, sqlSweepKeys, sweepBatchKeys)
	if err != nil {
		return false, fmt.Errorf("activity: sweep keys of messages: %w", err)
	}
	n, _ := result.RowsAffected() // lib/pq always returns it
	return n == sweepBatchKeys, nil
}

// transact commits what do has done.
func (in *Inbox) transact(ctx context.Context, workspace uuid.UUID, do func(*sql.Tx) error) error {
	tx, err := in.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("activity: begin: %w", err)
	}
	defer tx.Rollback() // after a commit it does nothing
	if err := do(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("activity: commit for workspace %s: %w", workspace, err)
	}
	return nil
}
