DROP INDEX pending_uploads_acked_list;
DROP INDEX activity_logs_uploads;
DROP INDEX activity_logs_target;
DROP INDEX activity_logs_type;
DROP INDEX activity_logs_canvas;
DROP INDEX activity_logs_source;
