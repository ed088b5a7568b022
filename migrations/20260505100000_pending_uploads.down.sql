DROP TABLE pending_upload_chunks;
DROP TABLE pending_uploads;
