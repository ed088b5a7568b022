-- Messages that have been sent, so that a message that is sent again is recorded and forwarded once. The digest is that
-- of the sender and the message. The row of a poll workspace commits with its inbox row. That of a push workspace is
-- claimed while the workspace is called, and has the answer afterwards if the call succeeded.
CREATE TABLE message_keys (
    workspace_id  uuid NOT NULL,
    digest        bytea NOT NULL CHECK (octet_length(digest) = 32),
    claim         uuid NOT NULL,
    claimed_until timestamptz,
    answer_status integer,
    answer_type   text,
    answer_body   bytea,
    expires_at    timestamptz NOT NULL,
    PRIMARY KEY (workspace_id, digest)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX message_keys_expiry ON message_keys (expires_at);
