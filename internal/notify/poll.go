package notify

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
)

const (
	// pollBatchSize is how many workspaces one query covers. Queries are spread over the interval,
	// so that the subscribers they wake do not all read at once.
	pollBatchSize = 500

	pollTimeout = 4 * time.Second
)

// poll wakes the subscribers of workspaces with new rows or receipts that no notification reported. One query
// covers many workspaces: 10,000 held polls that each queried every 5 s would be 2,000 queries a
// second.
func (h *Hub) poll(ctx context.Context) {
	failing := false
	for {
		batches := h.pollBatches()
		// Half the interval: a subscription that misses one round is in the next.
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
				h.options.Log.WarnContext(ctx, "polling the database for new inbox rows failed; held polls and event streams depend on notifications until it succeeds", "error", err)
			}
			failing = err != nil
		}
	}
}

// pollBatches returns the workspaces that have subscriptions, in batches, and drops the watches that
// had none at two calls in a row.
func (h *Hub) pollBatches() [][]uuid.UUID {
	h.mu.Lock()
	defer h.mu.Unlock()
	var batches [][]uuid.UUID
	for id, w := range h.watches {
		if len(w.subscriptions) == 0 {
			if w.idle {
				delete(h.watches, id)
			}
			w.idle = true
			continue
		}
		if n := len(batches); n == 0 || len(batches[n-1]) == pollBatchSize {
			batches = append(batches, make([]uuid.UUID, 0, pollBatchSize))
		}
		batches[len(batches)-1] = append(batches[len(batches)-1], id)
	}
	return batches
}

// pollBatch wakes the subscribers of the workspaces whose newest row has changed since the last
// poll, and of those that are polled for the first time, because the hub does not know which rows
// their subscribers have read. A subscriber may be woken for a row that it has read already; it then
// reads once without a result.
func (h *Hub) pollBatch(ctx context.Context, workspaces []uuid.UUID) error {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	newest, err := h.options.Newest(ctx, workspaces)
	if err != nil {
		return err
	}
	if err := h.pollReceipts(ctx, workspaces); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range workspaces {
		w := h.watches[id]
		if w == nil {
			continue
		}
		if !w.polled || w.newest != newest[id] {
			h.wake(id, Rows)
		}
		w.polled, w.newest = true, newest[id]
	}
	return nil
}

// pollReceipts does the same for receipts, of those workspaces that have subscriptions to them.
func (h *Hub) pollReceipts(ctx context.Context, workspaces []uuid.UUID) error {
	if h.options.NewestReceipts == nil {
		return nil
	}
	var asked []uuid.UUID
	h.mu.Lock()
	for _, id := range workspaces {
		if w := h.watches[id]; w != nil && slices.ContainsFunc(w.subscriptions, func(s *Subscription) bool { return s.kinds&Receipts != 0 }) {
			asked = append(asked, id)
		}
	}
	h.mu.Unlock()
	if len(asked) == 0 {
		return nil
	}
	newest, unnumbered, err := h.options.NewestReceipts(ctx, asked)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range asked {
		w := h.watches[id]
		if w == nil {
			continue
		}
		if !w.receiptPolled || w.receipt != newest[id] || unnumbered[id] {
			h.wake(id, Receipts)
		}
		w.receiptPolled, w.receipt = true, newest[id]
	}
	return nil
}
