-- One row per workspace. A writer adds to last_seq as late as it can in its transaction;
-- the row lock then makes the order of commits the order of seq, which is what lets a
-- reader use seq as a cursor and miss nothing.
CREATE TABLE activity_counters (
    workspace_id uuid PRIMARY KEY,
    last_seq     bigint NOT NULL CHECK (last_seq >= 0)
) WITH (fillfactor = 50);

-- No foreign key to workspaces: a workspace is never deleted, only marked removed, and
-- the check would cost a lock on its row for every message.
CREATE TABLE activity_logs (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id  uuid NOT NULL,
    seq           bigint NOT NULL,
    activity_type text NOT NULL,
    source_id     uuid,
    target_id     uuid,
    method        text,
    summary       text,
    -- json, not jsonb: the body is kept as it was sent, \u0000 included.
    request_body  json,
    response_body json,
    -- Length of both bodies, so that a page can be cut by size without reading them.
    body_bytes    integer NOT NULL DEFAULT 0,
    duration_ms   integer,
    status        text,
    error_detail  text,
    -- Taken while the counter's row is locked, so it never runs against seq.
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (workspace_id, seq)
);

CREATE INDEX activity_logs_workspace_time ON activity_logs (workspace_id, created_at);
