package server

import (
	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/events"
	"github.com/molecule-ai/platform/internal/notify"
)

// openNews prepares the hub that wakes held polls and streams. It listens on a connection of its own and notifies through
// a pool of its own, so that it neither waits for the other pools nor takes their connections.
func (s *Server) openNews(inbox *activity.Inbox, receipts *events.Log) {
	o := notify.Options{Newest: inbox.Newest, DB: s.pools.Notify, DSN: s.pools.ListenURL(), Log: s.log}
	if receipts != nil {
		o.NewestReceipts = receipts.NewestReceipts
	}
	s.news = notify.New(o)
}
