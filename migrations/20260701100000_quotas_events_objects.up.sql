-- Everything of staging that 20260505100000 does not have: quotas, idempotency keys, how far each inbox
-- was read, events of files, and files whose bytes are in an object store. The platform applies and
-- undoes both migrations in one transaction, so none of its databases rests between them.

-- Reservations: room in a workspace's quota for an upload that is being staged. The transaction that
-- commits the files deletes its reservation; one whose upload never commits expires.
CREATE TABLE upload_reservations (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id uuid NOT NULL,
    files        integer NOT NULL CHECK (files > 0),
    bytes        bigint NOT NULL CHECK (bytes >= 0),
    expires_at   timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

CREATE INDEX upload_reservations_workspace ON upload_reservations (workspace_id);

-- What a workspace uses of its quota. On vacuumed pages that is an index-only scan.
CREATE INDEX pending_uploads_usage ON pending_uploads (workspace_id, expires_at) INCLUDE (size_bytes) WHERE acked_at IS NULL;

-- Reserves room for an upload; reservation is null if there is none. One call is one round trip. The
-- lock comes first, so that each statement after it sees what was committed meanwhile: two uploads that
-- together exceed the quota cannot both pass. A reservation need not survive a crash, because its upload
-- does not either; hence no waiting for the disk.
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

-- Idempotency keys: an upload that is sent again gets its first answer. A key is written in the
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

-- How far each workspace has read its inbox, to within a minute. Rows up to there may be pruned.
CREATE TABLE activity_readers (
    workspace_id uuid PRIMARY KEY,
    read_seq     bigint NOT NULL,
    noted_at     timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Every file is written once and deleted soon. By default autovacuum waits until a fifth of a table is
-- dead, which is a lot of a table full of files, and then frees a few MiB a second. The platform runs its own
-- VACUUM where even these settings are too slow.
ALTER TABLE pending_uploads SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 50, autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_threshold = 5000, toast.autovacuum_vacuum_cost_delay = 0);
ALTER TABLE pending_upload_chunks SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 50, autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_threshold = 5000, toast.autovacuum_vacuum_cost_delay = 0);

-- Events of files (receipts): fetched, acknowledged, expired. A trigger writes the row, so that it
-- commits with the change whichever statement made it. The first reader numbers the rows (seq): taking
-- the number in the transaction of an ack would lock the counter, and a workspace's acks would wait for
-- each other.
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

-- Every object store that was ever configured, so that each object is found whatever is configured now.
-- The URL has no secrets in it. Objects are below the namespace, which no other database has: platforms
-- that share a bucket do not delete each other's objects as orphans.
CREATE TABLE upload_stores (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    url        text NOT NULL UNIQUE,
    namespace  uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- A row for each object, committed before the object is written and deleted after the object is: no
-- object is without a row. From garbage_at on the object belongs to no file and is to be deleted; NULL
-- while it belongs to one.
CREATE TABLE upload_objects (
    object_key uuid PRIMARY KEY,
    store_id   integer NOT NULL REFERENCES upload_stores (id),
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    file_id    uuid,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    garbage_at timestamptz,
    CHECK (file_id IS NOT NULL OR garbage_at IS NOT NULL)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX upload_objects_garbage ON upload_objects (garbage_at) WHERE garbage_at IS NOT NULL;

-- NULL: the bytes are in content and pending_upload_chunks. Otherwise they are in the object, and content
-- is empty.
ALTER TABLE pending_uploads ADD COLUMN object_key uuid;

CREATE UNIQUE INDEX pending_uploads_object ON pending_uploads (object_key) WHERE object_key IS NOT NULL;

-- Deleting a file, by whichever statement, leaves its object to the sweep.
CREATE FUNCTION release_object() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE upload_objects SET garbage_at = clock_timestamp() WHERE object_key = OLD.object_key;
    RETURN NULL;
END $$;

CREATE TRIGGER pending_uploads_object_released AFTER DELETE ON pending_uploads FOR EACH ROW
    WHEN (OLD.object_key IS NOT NULL) EXECUTE FUNCTION release_object();
