-- Files that wait for a poll-mode workspace. No foreign key to workspaces: the rows are
-- evidence of receipt and die by their own clock.
CREATE TABLE pending_uploads (
    file_id      uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id uuid NOT NULL,
    -- The first MiB, which is all of nearly every file; the rest is in pending_upload_chunks.
    content      bytea NOT NULL CHECK (octet_length(content) <= 1048576),
    size_bytes   bigint NOT NULL CHECK (size_bytes >= octet_length(content)),
    filename     text NOT NULL CHECK (filename ~ '^[A-Za-z0-9._-]{1,100}$' AND filename NOT IN ('.', '..')),
    mimetype     text NOT NULL,
    sha256       bytea NOT NULL CHECK (octet_length(sha256) = 32),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    fetched_at   timestamptz,
    acked_at     timestamptz,
    expires_at   timestamptz NOT NULL DEFAULT now() + interval '24 hours'
);

-- Attachments are compressed already: do not try again.
ALTER TABLE pending_uploads ALTER COLUMN content SET STORAGE EXTERNAL;

CREATE INDEX pending_uploads_unacked ON pending_uploads (workspace_id, created_at, file_id) WHERE acked_at IS NULL;
CREATE INDEX pending_uploads_expiry ON pending_uploads (expires_at) WHERE acked_at IS NULL;
CREATE INDEX pending_uploads_acked ON pending_uploads (acked_at) WHERE acked_at IS NOT NULL;

CREATE TABLE pending_upload_chunks (
    file_id uuid NOT NULL REFERENCES pending_uploads (file_id) ON DELETE CASCADE,
    -- 1 is the second MiB of the file, and so on.
    seq     integer NOT NULL CHECK (seq >= 1),
    data    bytea NOT NULL CHECK (octet_length(data) BETWEEN 1 AND 1048576),
    PRIMARY KEY (file_id, seq)
);

ALTER TABLE pending_upload_chunks ALTER COLUMN data SET STORAGE EXTERNAL;
