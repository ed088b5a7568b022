package notify

import (
	"context"
	"time"

	"github.com/google/uuid"
)

const (
	// pollBatchSize is how many workspaces one query is about. Between two there is a pause, so that
	// those who are woken do not all read at once.
	pollBatchSize = 500

	pollTimeout = 4 * time.Second
)

// poll wakes those whose workspace has rows that they were not told of. One query is about many
// workspaces: if 10,000 polls each looked by themselves, that would be 2,000 queries a second for
// nothing.
func (h *Hub) poll(ctx context.Context) {
	failing := false
	for {
		batches := h.pollBatches()
		// Half the interval: who comes right after a round began is in the next one.
		pause := jitter(Interval/2) / time.Duration(max(len(batches), 1))
		if len(batches) == 0 && !sleep(ctx, pause) {
			return
		}
		for _, batch := range batches {
			if !sleep(ctx, pause) {
				return
			}
			err := h.pollBatch(ctx, batch)
			if err != nil && !failing && ctx.Err() == nil {
				h.options.Log.WarnContext(ctx, "polling the database for new inbox rows failed; held polls depend on notifications until it succeeds", "error", err)
			}
			failing = err != nil
		}
	}
}

// pollBatches returns the workspaces whose rows are waited for, and forgets those that nobody has
// waited for since it was last called.
func (h *Hub) pollBatches() [][]uuid.UUID {
	h.mu.Lock()
	defer h.mu.Unlock()
	var batches [][]uuid.UUID
	for id, p := range h.watches {
		if len(p.subscriptions) == 0 {
			if p.idle {
				delete(h.watches, id)
			}
			p.idle = true
			continue
		}
		if n := len(batches); n == 0 || len(batches[n-1]) == pollBatchSize {
			batches = append(batches, make([]uuid.UUID, 0, pollBatchSize))
		}
		batches[len(batches)-1] = append(batches[len(batches)-1], id)
	}
	return batches
}

// pollBatch wakes the waiters of those workspaces whose number has changed. Also of those it sees
// for the first time, for it cannot know what they have seen. A number that is older than a
// waiter does no harm: what came before the waiter looked costs it one look for nothing.
func (h *Hub) pollBatch(ctx context.Context, workspaces []uuid.UUID) error {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	newest, err := h.options.Newest(ctx, workspaces)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range workspaces {
		p := h.watches[id]
		if p == nil {
			continue
		}
		if !p.polled || p.newest != newest[id] {
			h.wake(id, Rows)
		}
		p.polled, p.newest = true, newest[id]
	}
	return nil
}
