CREATE TABLE workspaces (
    id                      uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name                    text NOT NULL DEFAULT '',
    status                  text NOT NULL DEFAULT 'provisioning'
                            CHECK (status IN ('provisioning', 'online', 'removed')),
    -- NULL is a legacy row; it is treated as push.
    delivery_mode           text CHECK (delivery_mode IN ('push', 'poll')),
    url                     text,
    agent_card              json,
    -- The bearer the platform shows to a push workspace, so it cannot be a hash.
    platform_inbound_secret text,
    last_heartbeat_at       timestamptz,
    last_heartbeat          json,
    created_at              timestamptz NOT NULL DEFAULT now(),
    removed_at              timestamptz
);

CREATE INDEX workspaces_newest ON workspaces (created_at DESC, id DESC) WHERE status <> 'removed';

CREATE TABLE workspace_tokens (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id uuid NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    -- SHA-256 of the token; the token itself is never stored.
    token_hash   bytea NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32),
    prefix       text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    revoked_at   timestamptz
);

CREATE INDEX workspace_tokens_workspace ON workspace_tokens (workspace_id, created_at);
