DROP INDEX workspace_tokens_revoked;
DROP INDEX workspaces_tombstones;
DROP INDEX workspaces_anonymous;
ALTER TABLE workspaces
    DROP COLUMN registered_anonymously,
    DROP COLUMN previous_secret_until,
    DROP COLUMN previous_inbound_secret;
