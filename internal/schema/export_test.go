package schema

import (
	"context"
	"database/sql"
	"io/fs"
)

// A Newer is a platform with other migrations than this binary's.
type Newer struct{ series series }

// NewNewer returns the platform with the migrations in files.
func NewNewer(files fs.ReadFileFS) Newer { return Newer{mustLoad(files)} }

// Up is Up of that platform.
func (n Newer) Up(ctx context.Context, db *sql.DB) ([]Migration, error) { return n.series.up(ctx, db) }

// Down is Down of that platform.
func (n Newer) Down(ctx context.Context, db *sql.DB, steps int) ([]Migration, error) {
	return n.series.down(ctx, db, steps)
}
