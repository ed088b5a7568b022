-- Rotation of the inbound secret, and what it takes to sweep identities that nobody uses. Older binaries ignore the
-- columns: they go on presenting platform_inbound_secret. The indexes are empty when they are made.

-- While previous_secret_until is set, the workspace has not received platform_inbound_secret yet. Up to that time the
-- platform presents previous_inbound_secret, which is NULL once it was revoked; after it, none.
ALTER TABLE workspaces
    ADD COLUMN previous_inbound_secret text,
    ADD COLUMN previous_secret_until   timestamptz,
    -- The row was made by a registration without a token. Set only by platforms that know the column.
    ADD COLUMN registered_anonymously  boolean NOT NULL DEFAULT false;

CREATE INDEX workspaces_anonymous ON workspaces (created_at) WHERE registered_anonymously AND last_heartbeat_at IS NULL;
CREATE INDEX workspaces_tombstones ON workspaces (removed_at)
    WHERE status = 'removed' AND (agent_card IS NOT NULL OR last_heartbeat IS NOT NULL OR platform_inbound_secret IS NOT NULL
        OR previous_inbound_secret IS NOT NULL);
CREATE INDEX workspace_tokens_revoked ON workspace_tokens (revoked_at) WHERE revoked_at IS NOT NULL;
