ALTER TABLE activity_logs RESET (
    autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_analyze_scale_factor,
    toast.autovacuum_vacuum_scale_factor, toast.autovacuum_vacuum_threshold);

DROP FUNCTION prune_inboxes(interval, interval, integer, integer);
DROP TRIGGER activity_readers_read ON activity_readers;
DROP FUNCTION inbox_read();
DROP TRIGGER activity_counters_begun ON activity_counters;
DROP FUNCTION inbox_begun();
DROP TABLE inbox_pruning;
