package pendinguploads

// BacklogStatements returns the statements of ReadBacklog.
func BacklogStatements() (count, oldest string) { return sqlBacklog, sqlBacklogOldest }
