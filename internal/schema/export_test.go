package schema

import (
	"context"
	"database/sql"
	"io/fs"
	"time"
)

// A Newer is a platform with other migrations than this binary's.
type Newer struct{ series series }

// NewNewer returns the platform with the migrations in files.
func NewNewer(files fs.ReadFileFS) Newer { return Newer{mustLoad(files)} }

// Up is Up of that platform.
func (n Newer) Up(ctx context.Context, db *sql.DB, o ...Option) ([]Migration, error) {
	return n.series.up(ctx, db, o...)
}

// Impatient is an Option: a try waits for that long for a lock, the pause after it is as long, and all together has a total.
func Impatient(lock, total time.Duration) Option {
	return func(o *options) { o.patience = patience{lock: lock, pause: lock, longestPause: 2 * lock, total: total} }
}

// Down is Down of that platform.
func (n Newer) Down(ctx context.Context, db *sql.DB, steps int) ([]Migration, error) {
	return n.series.down(ctx, db, steps)
}
