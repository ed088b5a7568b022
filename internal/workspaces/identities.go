package workspaces

import (
	"context"
	"fmt"
)

// sweepBatch is how many rows one statement deletes.
const sweepBatch = 500

// Whether a workspace ever had a row is in activity_counters, which outlives the rows. A token that was used even once
// has last_used_at, and a second token was minted by somebody who knows the workspace.
const (
	sqlSweepAnonymous = `
DELETE FROM workspaces WHERE id IN (
    SELECT w.id FROM workspaces w
    WHERE w.registered_anonymously AND w.last_heartbeat_at IS NULL AND w.created_at < now() - interval '7 days'
        AND w.status <> 'removed'
        AND NOT EXISTS (SELECT FROM workspace_tokens t WHERE t.workspace_id = w.id AND t.last_used_at IS NOT NULL)
        AND (SELECT count(*) FROM workspace_tokens t WHERE t.workspace_id = w.id) <= 1
        AND NOT EXISTS (SELECT FROM pending_uploads p WHERE p.workspace_id = w.id AND p.acked_at IS NULL)
        AND NOT EXISTS (SELECT FROM activity_counters c WHERE c.workspace_id = w.id AND c.last_seq > 0)
    ORDER BY w.created_at LIMIT $1 FOR UPDATE SKIP LOCKED
)`

	// sqlSettle takes the mark off what was found in use, so that the next sweep does not look at it again.
	sqlSettle = `
UPDATE workspaces SET registered_anonymously = false WHERE id IN (
    SELECT id FROM workspaces
    WHERE registered_anonymously AND last_heartbeat_at IS NULL AND created_at < now() - interval '7 days'
    ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED
)`

	sqlSweepTombstones = `
UPDATE workspaces SET agent_card = NULL, last_heartbeat = NULL, platform_inbound_secret = NULL,
    previous_inbound_secret = NULL, previous_secret_until = NULL
WHERE id IN (
    SELECT id FROM workspaces
    WHERE status = 'removed' AND (agent_card IS NOT NULL OR last_heartbeat IS NOT NULL OR platform_inbound_secret IS NOT NULL
            OR previous_inbound_secret IS NOT NULL)
        AND removed_at < now() - interval '30 days'
    ORDER BY removed_at LIMIT $1 FOR UPDATE SKIP LOCKED
)`

	sqlSweepTokens = `
DELETE FROM workspace_tokens WHERE id IN (
    SELECT id FROM workspace_tokens WHERE revoked_at < now() - interval '30 days'
    ORDER BY revoked_at LIMIT $1 FOR UPDATE SKIP LOCKED
)`

	sqlSweepable = `
SELECT (
    SELECT count(*) FROM workspaces w
    WHERE w.registered_anonymously AND w.last_heartbeat_at IS NULL AND w.created_at < now() - interval '7 days'
        AND w.status <> 'removed'
        AND NOT EXISTS (SELECT FROM workspace_tokens t WHERE t.workspace_id = w.id AND t.last_used_at IS NOT NULL)
        AND (SELECT count(*) FROM workspace_tokens t WHERE t.workspace_id = w.id) <= 1
        AND NOT EXISTS (SELECT FROM pending_uploads p WHERE p.workspace_id = w.id AND p.acked_at IS NULL)
        AND NOT EXISTS (SELECT FROM activity_counters c WHERE c.workspace_id = w.id AND c.last_seq > 0)
) + (
    SELECT count(*) FROM workspaces
    WHERE status = 'removed' AND (agent_card IS NOT NULL OR last_heartbeat IS NOT NULL OR platform_inbound_secret IS NOT NULL
            OR previous_inbound_secret IS NOT NULL)
        AND removed_at < now() - interval '30 days'
) + (
    SELECT count(*) FROM workspace_tokens WHERE revoked_at < now() - interval '30 days'
)`
)

// SweepIdentities deletes a batch of identities that nobody uses, and returns how many and whether there may be more:
// registrations without a token that saw no authenticated request, file or row within 7 days, and tokens that were
// revoked 30 days ago. Tombstones stay for ever, so that nobody gets their id; after 30 days they lose card and secrets.
func (s *Store) SweepIdentities(ctx context.Context) (n int, more bool, err error) {
	for _, statement := range []string{sqlSweepAnonymous, sqlSettle, sqlSweepTombstones, sqlSweepTokens} {
		result, err := s.db.ExecContext(ctx, statement, sweepBatch)
		if err != nil {
			return n, false, fmt.Errorf("workspaces: sweep identities: %w", err)
		}
		swept, _ := result.RowsAffected()
		if swept == sweepBatch {
			more = true
		}
		if statement != sqlSettle {
			n += int(swept)
		}
		if statement == sqlSweepAnonymous && swept == sweepBatch {
			return n, true, nil // what is left has to be looked at before it is taken for one in use
		}
	}
	return n, more, nil
}

// SweepableIdentities returns how many SweepIdentities would delete now, in all batches.
func (s *Store) SweepableIdentities(ctx context.Context) (n int, err error) {
	if err := s.db.QueryRowContext(ctx, sqlSweepable).Scan(&n); err != nil {
		return 0, fmt.Errorf("workspaces: count identities to sweep: %w", err)
	}
	return n, nil
}
