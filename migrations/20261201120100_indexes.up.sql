-- What pages of an inbox and of its files are read by, for each filter that a client can give. They are made
-- while writers wait: about a second for each million rows of the log.

-- Rows of a sender, and those without one: a row of the log has its entry in one of the two. Not one index for
-- both, because PostgreSQL does not see that the rows of IS NULL are in the order of seq there.
CREATE INDEX activity_logs_source ON activity_logs (workspace_id, source_id, seq) WHERE source_id IS NOT NULL;
CREATE INDEX activity_logs_canvas ON activity_logs (workspace_id, seq) WHERE source_id IS NULL;

-- Nearly all rows have this type, and are addressed to the workspace that has them. These hold the others.
CREATE INDEX activity_logs_type ON activity_logs (workspace_id, activity_type, seq) WHERE activity_type <> 'a2a_receive';
CREATE INDEX activity_logs_target ON activity_logs (workspace_id, target_id, seq) WHERE target_id <> workspace_id;
CREATE INDEX activity_logs_uploads ON activity_logs (workspace_id, seq) WHERE activity_type = 'a2a_receive' AND method = 'chat_upload_receive';

-- A file gets its entry when it is acknowledged.
CREATE INDEX pending_uploads_acked_list ON pending_uploads (workspace_id, created_at, file_id) WHERE acked_at IS NOT NULL;
