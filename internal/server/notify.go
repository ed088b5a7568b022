package server

import (
	"context"
	"database/sql"
	"time"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/events"
	"github.com/molecule-ai/platform/internal/notify"
)

// openNews prepares the hub that wakes held polls and streams. It listens on a connection of its own and notifies through
// a pool of its own, so that it neither waits for the other pools nor takes their connections.
func (s *Server) openNews(inbox *activity.Inbox) {
	s.news = notify.New(notify.Options{Newest: inbox.Newest, DB: s.pools.Notify, DSN: s.pools.ListenURL(), Log: s.log})
}

// prunedInbox deletes old receipts together with old rows of the inbox. They count as nothing:
// each is about a file that is counted.
type prunedInbox struct {
	*activity.Inbox
	receipts *events.Log
}

func newPrunedInbox(db *sql.DB, inbox *activity.Inbox) prunedInbox {
	return prunedInbox{inbox, events.New(db, inbox)}
}

// Prune implements sweeper.Inbox.
func (p prunedInbox) Prune(ctx context.Context, retention, limit time.Duration) (int, bool, error) {
	more, err := p.receipts.Prune(ctx, events.Retention)
	if err != nil {
		return 0, false, err
	}
	n, moreRows, err := p.Inbox.Prune(ctx, retention, limit)
	return n, more || moreRows, err
}
