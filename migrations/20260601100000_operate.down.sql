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
