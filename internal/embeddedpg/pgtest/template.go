package pgtest

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/molecule-ai/platform/internal/schema"
)

// migrateTemplate creates the database that New clones. PostgreSQL refuses to clone a database with open connections,
// so it closes its own.
func migrateTemplate() error {
	if _, err := admin.Exec("CREATE DATABASE " + templateDatabase); err != nil {
		return fmt.Errorf("create database %s: %w", templateDatabase, err)
	}
	db, err := sql.Open("postgres", server.DSN(templateDatabase))
	if err != nil {
		return fmt.Errorf("open database %s: %w", templateDatabase, err)
	}
	defer db.Close()
	_, err = schema.Up(context.Background(), db)
	return err
}
