package workspaces

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

const (
	// sqlGetForPush is sqlGet with the secret to present. While the workspace has not received the current one, that is
	// the previous one, up to its end, and then none.
	sqlGetForPush = `
SELECT id, name, status, coalesce(delivery_mode, ''), coalesce(url, ''), coalesce(CASE
        WHEN previous_secret_until IS NULL THEN platform_inbound_secret
        WHEN previous_secret_until > now() THEN previous_inbound_secret
    END, ''), last_heartbeat_at, created_at
FROM workspaces WHERE id = $1 AND status <> 'removed'`

	// sqlRotate keeps the secret that the workspace knows: after a second rotation before the first was received, that is
	// still the one from before both, and its end does not move.
	sqlRotate = `
UPDATE workspaces SET platform_inbound_secret = $2,
    previous_inbound_secret = CASE
        WHEN $3 OR $4 THEN NULL
        WHEN previous_secret_until IS NULL THEN platform_inbound_secret
        ELSE previous_inbound_secret
    END,
    previous_secret_until = CASE
        WHEN $4 THEN NULL
        WHEN $3 THEN now()
        ELSE coalesce(previous_secret_until, now() + interval '10 minutes')
    END
WHERE id = $1 AND status <> 'removed' RETURNING platform_inbound_secret`

	sqlDelivered = `
UPDATE workspaces SET previous_inbound_secret = NULL, previous_secret_until = NULL
WHERE id = $1 AND previous_secret_until IS NOT NULL`

	sqlHeartbeatDelivers = `
UPDATE workspaces SET status = 'online', last_heartbeat_at = now(), last_heartbeat = $2,
    platform_inbound_secret = coalesce(platform_inbound_secret, $3),
    previous_inbound_secret = NULL, previous_secret_until = NULL
WHERE id = $1 AND status <> 'removed' RETURNING platform_inbound_secret`
)

// A Rotation says how a new inbound secret takes effect.
type Rotation struct {
	RevokeNow bool // the old secret is not presented any more, even before the workspace has the new one
	Delivered bool // the workspace itself gets the answer, so it has the new secret
}

// ErrRotationUnavailable: the schema is base, which has no room for a second secret.
var ErrRotationUnavailable = errors.New("workspaces: rotation needs a newer schema")

// WithoutRotation is for the base schema, which has no columns for rotation, and returns the store.
func (s *Store) WithoutRotation() *Store {
	s.base = true
	return s
}

// GetForPush is Get, with the secret that the platform presents to the workspace as InboundSecret. During a rotation it
// is not the newest: the old one is presented until the workspace has received the new one, for 10 minutes at most;
// after that, and after Rotation.RevokeNow, it is "".
func (s *Store) GetForPush(ctx context.Context, id uuid.UUID) (Workspace, error) {
	if s.base {
		return s.Get(ctx, id)
	}
	w, err := scan(s.db.QueryRowContext(ctx, sqlGetForPush, id))
	if err != nil {
		return Workspace{}, fmt.Errorf("workspaces: get %s for push: %w", id, err)
	}
	return w, nil
}

// Rotate replaces the inbound secret of a workspace and returns the new one. The old one is never returned again.
// ErrNotFound.
func (s *Store) Rotate(ctx context.Context, id uuid.UUID, r Rotation) (secret string, err error) {
	if s.base {
		return "", ErrRotationUnavailable
	}
	err = s.db.QueryRowContext(ctx, sqlRotate, id, newSecret(), r.RevokeNow, r.Delivered).Scan(&secret)
	if err != nil {
		return "", fmt.Errorf("workspaces: rotate inbound secret of %s: %w", id, notFound(err))
	}
	return secret, nil
}

// delivered records that the workspace itself receives the current secret with the answer of this transaction.
func (s *Store) delivered(ctx context.Context, tx *sql.Tx, id uuid.UUID) error {
	if s.base {
		return nil
	}
	if _, err := tx.ExecContext(ctx, sqlDelivered, id); err != nil {
		return fmt.Errorf("end rotation: %w", err)
	}
	return nil
}
