// Package notify wakes held polls and event streams when something changes in their workspace.
//
// A notification is a hint without contents: it names a workspace and the kinds of change. A
// subscriber that is woken reads the database, and the hub polls the database every few seconds
// besides, so a lost notification delays a subscriber and loses nothing.
//
// Within one replica a subscriber is woken at once. Other replicas are notified through
// PostgreSQL's LISTEN and NOTIFY. NOTIFY is sent on a connection of its own after the commit: in
// the writing transaction it would take a lock that serializes all commits of the database
// (measured: 9,700 transactions a second become 3,000). If the LISTEN connection is down, or a
// pooler in transaction mode delivers no notifications, changes are seen by polling.
//
// A subscription costs a few hundred bytes, no goroutine and no connection. Close ends all of them.
package notify

import (
	"context"
	"database/sql"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// Kind is a set of kinds of change.
type Kind uint8

// The kinds of change.
const (
	Rows     Kind = 1 << iota // the inbox has new rows
	Receipts                  // files were fetched or acknowledged, or have expired
	Access                    // a token was revoked, or the workspace removed

	allKinds = Rows | Receipts | Access
)

// Interval is the longest time until a change is seen if its notification is lost.
const Interval = 5 * time.Second

// Options configure a Hub. Without DB it serves this replica only.
type Options struct {
	// Newest returns the number of the newest inbox row of each workspace; numbers grow with each
	// row. A workspace without rows may be missing. The hub polls it.
	Newest func(ctx context.Context, workspaces []uuid.UUID) (map[uuid.UUID]int64, error)

	// NewestReceipts returns the same of receipts, and which workspaces have receipts without a number: their
	// subscribers are woken until one has numbered them. Nil if there are no receipts. It is asked only for
	// workspaces with subscriptions to Receipts.
	NewestReceipts func(ctx context.Context, workspaces []uuid.UUID) (newest map[uuid.UUID]int64, unnumbered map[uuid.UUID]bool, err error)

	DB  *sql.DB // for NOTIFY; one connection is enough
	DSN string  // for LISTEN
	Log *slog.Logger
}

// Hub holds the subscriptions of one replica. It is safe for concurrent use. Publish on a nil *Hub
// does nothing.
type Hub struct {
	options   Options
	id        string // identifies this hub's own notifications
	closed    chan struct{}
	sendReady chan struct{} // signals that unsent is not empty

	mu            sync.Mutex
	watches       map[uuid.UUID]*watch
	subscriptions int
	unsent        map[uuid.UUID]Kind // published here, not sent to other replicas yet
}

// A watch is a workspace that has subscriptions, or had some lately.
type watch struct {
	subscriptions []*Subscription
	newest        int64 // the number of its newest row at the last poll
	polled        bool  // newest is set
	receipt       int64 // the number of its newest receipt at the last poll
	receiptPolled bool  // receipt is set
	idle          bool  // there was no subscription at the last poll
}

// New returns a hub. Polling and the exchange with other replicas start with Run.
func New(o Options) *Hub {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Hub{
		options: o, id: newID(), closed: make(chan struct{}), sendReady: make(chan struct{}, 1),
		watches: map[uuid.UUID]*watch{}, unsent: map[uuid.UUID]Kind{},
	}
}

// Run polls for changes without a notification, and exchanges notifications with other replicas,
// until ctx is done. It keeps retrying while the database is unavailable.
func (h *Hub) Run(ctx context.Context) {
	var wg sync.WaitGroup
	if h.options.Newest != nil {
		wg.Go(func() { h.poll(ctx) })
	}
	if h.options.DB != nil {
		wg.Go(func() { h.sendLoop(ctx) })
		wg.Go(func() { h.listenLoop(ctx) })
	}
	wg.Wait()
}

// Close ends all subscriptions, present and future: it closes Done.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.closed:
	default:
		close(h.closed)
	}
}

// Done is closed by Close.
func (h *Hub) Done() <-chan struct{} { return h.closed }

// Subscriptions returns how many subscriptions are open.
func (h *Hub) Subscriptions() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.subscriptions
}

// maxUnsent bounds the workspaces that wait to be sent. Changes beyond it reach other replicas by
// polling.
const maxUnsent = 20_000

// Publish wakes the subscriptions to these kinds of the workspace, here and on other replicas. Call
// it after the commit. It does not block.
func (h *Hub) Publish(workspace uuid.UUID, kinds Kind) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wake(workspace, kinds)
	if h.options.DB == nil {
		return
	}
	if _, ok := h.unsent[workspace]; ok || len(h.unsent) < maxUnsent {
		h.unsent[workspace] |= kinds
	}
	select {
	case h.sendReady <- struct{}{}:
	default:
	}
}

// wake wakes the subscriptions of this replica. The caller holds h.mu.
func (h *Hub) wake(workspace uuid.UUID, kinds Kind) {
	if w := h.watches[workspace]; w != nil {
		for _, s := range w.subscriptions {
			s.wake(kinds)
		}
	}
}

// Subscription is woken by changes in a workspace.
type Subscription struct {
	hub       *Hub
	workspace uuid.UUID
	kinds     Kind
	pending   atomic.Uint32 // kinds published since the last Take
	wakeups   chan struct{} // capacity 1: several changes before a Take are one wake-up
}

// Subscribe returns a subscription to these kinds of change. Subscribe before reading the database:
// a change between the read and Subscribe would be missed until the next poll. The caller closes
// the subscription.
func (h *Hub) Subscribe(workspace uuid.UUID, kinds Kind) *Subscription {
	s := &Subscription{hub: h, workspace: workspace, kinds: kinds, wakeups: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	w := h.watches[workspace]
	if w == nil {
		w = &watch{}
		h.watches[workspace] = w
	}
	w.subscriptions, w.idle = append(w.subscriptions, s), false
	h.subscriptions++
	return s
}

// Wake returns the channel that receives when there was a change; Take returns its kinds.
func (s *Subscription) Wake() <-chan struct{} { return s.wakeups }

// Take returns the kinds of the changes since the last call.
func (s *Subscription) Take() Kind { return Kind(s.pending.Swap(0)) }

// wake does not block.
func (s *Subscription) wake(kinds Kind) {
	if kinds &= s.kinds; kinds == 0 {
		return
	}
	s.pending.Or(uint32(kinds))
	select {
	case s.wakeups <- struct{}{}:
	default:
	}
}

// Close removes the subscription from its hub.
func (s *Subscription) Close() {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	w := h.watches[s.workspace]
	for i, other := range w.subscriptions {
		if other != s {
			continue
		}
		last := len(w.subscriptions) - 1
		w.subscriptions[i], w.subscriptions[last] = w.subscriptions[last], nil
		w.subscriptions = w.subscriptions[:last]
		h.subscriptions--
		break
	}
	// A watch that was polled stays for a while: a client's next poll follows soon, and a new watch
	// would wake it once without a change.
	if len(w.subscriptions) == 0 && !w.polled {
		delete(h.watches, s.workspace)
	}
}

// jitter returns a duration between 0.8 d and d, so that loops that started together drift apart.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Float64()*0.2*float64(d))
}

// sleep returns false if ctx is done first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
