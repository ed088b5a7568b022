DROP TABLE activity_logs;
DROP TABLE activity_counters;
