-- What operating the platform needs: room that is promised to uploads in flight, keys of uploads
-- that may be sent again, how far each inbox was read, and settings that keep the tables small.

-- Reservations. Room in a workspace's quota for an upload that is being staged; it becomes the
-- files themselves in the transaction that commits them, and falls due if that never comes.
CREATE TABLE upload_reservations (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id uuid NOT NULL,
    files        integer NOT NULL CHECK (files > 0),
    bytes        bigint NOT NULL CHECK (bytes >= 0),
    expires_at   timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

CREATE INDEX upload_reservations_workspace ON upload_reservations (workspace_id);

-- What a workspace uses of its quota; where the table was vacuumed, from the index alone.
CREATE INDEX pending_uploads_usage ON pending_uploads (workspace_id, expires_at) INCLUDE (size_bytes) WHERE acked_at IS NULL;

-- Reserves room for an upload, or says that there is none: then reservation is null. One call is
-- one round trip; inside, the lock comes first and each statement after it sees what was committed
-- meanwhile, so that uploads at the edge cannot pass it together. The reservation itself need not
-- survive a crash, for the upload it is for does not either.
CREATE FUNCTION reserve_upload(workspace uuid, add_files integer, add_bytes bigint, max_files bigint, max_bytes bigint, ttl interval,
    OUT reservation uuid, OUT used_files bigint, OUT used_bytes bigint) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM pg_advisory_xact_lock(hashtextextended(workspace::text, 20260601));
    SELECT coalesce(sum(u.n), 0), coalesce(sum(u.bytes), 0)
    INTO used_files, used_bytes
    FROM (
        SELECT 1 AS n, p.size_bytes AS bytes FROM pending_uploads p
        WHERE p.workspace_id = workspace AND p.acked_at IS NULL AND p.expires_at > clock_timestamp()
        UNION ALL
        SELECT r.files, r.bytes FROM upload_reservations r
        WHERE r.workspace_id = workspace AND r.expires_at > clock_timestamp()
    ) u;
    IF used_files + add_files <= max_files AND used_bytes + add_bytes <= max_bytes THEN
        INSERT INTO upload_reservations (workspace_id, files, bytes, expires_at)
        VALUES (workspace, add_files, add_bytes, clock_timestamp() + ttl) RETURNING id INTO reservation;
    END IF;
END $$;

-- Keys of uploads, so that one that is sent again finds its first answer. Written in the
-- transaction of the files.
CREATE TABLE upload_keys (
    workspace_id uuid NOT NULL,
    key          text NOT NULL,
    fingerprint  bytea NOT NULL CHECK (octet_length(fingerprint) = 32),
    files        json NOT NULL,
    expires_at   timestamptz NOT NULL,
    PRIMARY KEY (workspace_id, key)
);

CREATE INDEX upload_keys_expiry ON upload_keys (expires_at);

-- How far each workspace has read its inbox, to within a minute: rows before that one may be pruned.
CREATE TABLE activity_readers (
    workspace_id uuid PRIMARY KEY,
    read_seq     bigint NOT NULL,
    noted_at     timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Every file is written once and deleted soon. The default waits until a fifth of a table is dead,
-- and of a table full of files that is a lot; then it goes at a few MiB a second. The platform's own
-- VACUUM is for when even this is too slow.
ALTER TABLE pending_uploads SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 50, autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_threshold = 5000, toast.autovacuum_vacuum_cost_delay = 0);
ALTER TABLE pending_upload_chunks SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 50, autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_threshold = 5000, toast.autovacuum_vacuum_cost_delay = 0);

-- Receipts: what became of staged files, for those who watch. A row is written by the change
-- itself, whoever makes it, an older platform too. It gets its number from the first reader: a
-- counter's lock in the transaction of an ack would make a workspace's acks wait for each other.
CREATE TABLE receipts (
    id           bigint GENERATED ALWAYS AS IDENTITY,
    workspace_id uuid NOT NULL,
    seq          bigint,
    kind         text NOT NULL CHECK (kind IN ('fetched', 'acked', 'expired')),
    state        text NOT NULL CHECK (state IN ('fetched', 'acked', 'expired')),
    file_id      uuid NOT NULL,
    filename     text NOT NULL,
    size_bytes   bigint NOT NULL,
    at           timestamptz NOT NULL,
    UNIQUE (workspace_id, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX receipts_at ON receipts (at);

CREATE TABLE receipt_counters (
    workspace_id uuid PRIMARY KEY,
    last_seq     bigint NOT NULL CHECK (last_seq >= 0)
) WITH (fillfactor = 50);

CREATE FUNCTION write_receipt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Who acknowledges at once is quicker than the note that the file was fetched.
    INSERT INTO receipts (workspace_id, kind, state, file_id, filename, size_bytes, at)
    VALUES (OLD.workspace_id, TG_ARGV[0], CASE WHEN OLD.acked_at IS NULL THEN TG_ARGV[0] ELSE 'acked' END,
        OLD.file_id, OLD.filename, OLD.size_bytes,
        CASE TG_ARGV[0] WHEN 'fetched' THEN NEW.fetched_at WHEN 'acked' THEN NEW.acked_at ELSE clock_timestamp() END);
    RETURN NULL;
END $$;

CREATE TRIGGER pending_uploads_fetched AFTER UPDATE OF fetched_at ON pending_uploads FOR EACH ROW
    WHEN (OLD.fetched_at IS NULL AND NEW.fetched_at IS NOT NULL) EXECUTE FUNCTION write_receipt('fetched');
CREATE TRIGGER pending_uploads_acked AFTER UPDATE OF acked_at ON pending_uploads FOR EACH ROW
    WHEN (OLD.acked_at IS NULL AND NEW.acked_at IS NOT NULL) EXECUTE FUNCTION write_receipt('acked');
CREATE TRIGGER pending_uploads_expired AFTER DELETE ON pending_uploads FOR EACH ROW
    WHEN (OLD.acked_at IS NULL) EXECUTE FUNCTION write_receipt('expired');
