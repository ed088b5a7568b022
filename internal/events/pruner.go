package events

import (
	"context"
	"database/sql"
	"time"

	"github.com/molecule-ai/platform/internal/activity"
)

// Pruner is an inbox whose Prune also deletes the receipts that are older than Retention, and expired keys of messages.
// They are not counted: each is about a file or a row that is.
type Pruner struct {
	*activity.Inbox
	receipts *Log
}

// NewPruner returns a Pruner of inbox, which is in db.
func NewPruner(db *sql.DB, inbox *activity.Inbox) Pruner { return Pruner{inbox, New(db, inbox)} }

// Prune implements sweeper.Inbox.
func (p Pruner) Prune(ctx context.Context, retention, limit time.Duration) (int, bool, error) {
	more, err := p.receipts.Prune(ctx, Retention)
	if err != nil {
		return 0, false, err
	}
	moreKeys, err := p.SweepKeys(ctx)
	if err != nil {
		return 0, false, err
	}
	n, moreRows, err := p.Inbox.Prune(ctx, retention, limit)
	return n, more || moreKeys || moreRows, err
}
