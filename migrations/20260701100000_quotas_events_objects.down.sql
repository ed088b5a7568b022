-- Files whose bytes are in an object store would be lost: `platform storage migrate` with an empty
-- STORAGE_URL brings them back first. The lock keeps a file from being staged after the check.
DO $$
BEGIN
    LOCK TABLE pending_uploads IN ACCESS EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM pending_uploads WHERE object_key IS NOT NULL) THEN
        RAISE EXCEPTION 'there are files whose bytes are in an object store; run `platform storage migrate` with an empty STORAGE_URL first';
    END IF;
END $$;

DROP TRIGGER pending_uploads_object_released ON pending_uploads;
DROP FUNCTION release_object();
ALTER TABLE pending_uploads DROP COLUMN object_key;
DROP TABLE upload_objects;
DROP TABLE upload_stores;

DROP TRIGGER pending_uploads_expired ON pending_uploads;
DROP TRIGGER pending_uploads_acked ON pending_uploads;
DROP TRIGGER pending_uploads_fetched ON pending_uploads;
DROP FUNCTION write_receipt();
DROP TABLE receipt_counters;
DROP TABLE receipts;

ALTER TABLE pending_uploads RESET (
    autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_vacuum_cost_delay,
    toast.autovacuum_vacuum_scale_factor, toast.autovacuum_vacuum_threshold, toast.autovacuum_vacuum_cost_delay);
ALTER TABLE pending_upload_chunks RESET (
    autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_vacuum_cost_delay,
    toast.autovacuum_vacuum_scale_factor, toast.autovacuum_vacuum_threshold, toast.autovacuum_vacuum_cost_delay);

DROP TABLE activity_readers;
DROP TABLE upload_keys;
DROP FUNCTION reserve_upload(uuid, integer, bigint, bigint, bigint, interval);
DROP INDEX pending_uploads_usage;
DROP TABLE upload_reservations;
