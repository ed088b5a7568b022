package events

import (
	"context"
	"time"
)

// Pruner deletes old receipts and the expired keys of messages. It implements sweeper.Events.
type Pruner struct{ log *Log }

// NewPruner returns a Pruner of the receipts and of their inbox.
func NewPruner(log *Log) Pruner { return Pruner{log} }

// Prune deletes one batch of each, and reports whether there may be more.
func (p Pruner) Prune(ctx context.Context, retention time.Duration) (more bool, err error) {
	moreReceipts, err := p.log.Prune(ctx, retention)
	if err != nil {
		return false, err
	}
	moreKeys, err := p.log.inbox.SweepKeys(ctx)
	return moreReceipts || moreKeys, err
}
