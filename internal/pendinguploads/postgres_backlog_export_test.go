package pendinguploads

// BacklogStatements are what ReadBacklog asks.
func BacklogStatements() (count, oldest string) { return sqlBacklog, sqlBacklogOldest }
