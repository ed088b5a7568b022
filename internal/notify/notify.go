// Package notify wakes those who wait for something to happen in a workspace: polls that are held
// until there is a row, and streams of events.
//
// Wake says only that it is worth looking. It carries nothing, so nothing is lost with it: who is
// woken reads the database, and so does, every few seconds, who is not. Within the platform news
// arrives at once. Other replicas are told through PostgreSQL's NOTIFY, from a connection of its
// own and after the commit: within the writing transaction it would take a lock that all of the
// database waits for (measured: 9,700 transactions a second become 3,000). If that connection is
// down, or a pooler stands in between that passes no notifications, everything works, a few
// seconds later.
//
// A waiter costs a few hundred bytes, and neither a goroutine nor a connection. Close ends all
// waits at once.
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

// Kind says what it is worth looking at. Kinds can be combined.
type Kind uint8

// The kinds of news.
const (
	Rows     Kind = 1 << iota // the inbox has new rows
	Receipts                  // files were fetched, acknowledged, or have expired
	Access                    // a token was revoked, or the workspace removed

	allKinds = Rows | Receipts | Access
)

// Interval is the longest that a waiter goes without looking, whatever becomes of the news.
const Interval = 5 * time.Second

// Options are what a Hub needs to reach other replicas and to notice what they did. Without DB
// it knows of this platform only.
type Options struct {
	// Newest returns for each workspace a number that grows with each row of its inbox; a
	// workspace without any may be left out.
	Newest func(ctx context.Context, workspaces []uuid.UUID) (map[uuid.UUID]int64, error)

	DB  *sql.DB // to send from; one connection is enough
	DSN string  // to listen with
	Log *slog.Logger
}

// Hub knows who waits. It is safe for concurrent use. A nil *Hub takes announcements and does
// nothing with them.
type Hub struct {
	options   Options
	id        string // by which it knows its own notifications
	closed    chan struct{}
	sendReady chan struct{} // untold is not empty

	mu            sync.Mutex
	watches       map[uuid.UUID]*watch
	subscriptions int
	unsent        map[uuid.UUID]Kind // what other replicas have not been told yet
}

// A watch is a workspace that is waited for.
type watch struct {
	subscriptions []*Subscription
	newest        int64 // of its rows, when the hub last looked
	polled        bool  // the hub has looked
	idle          bool  // nobody waited when the hub last looked
}

// New returns a hub. It does nothing by itself until Run.
func New(o Options) *Hub {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Hub{
		options: o, id: newID(), closed: make(chan struct{}), sendReady: make(chan struct{}, 1),
		watches: map[uuid.UUID]*watch{}, unsent: map[uuid.UUID]Kind{},
	}
}

// Run looks for what the news missed, and exchanges news with other replicas, until ctx is done.
// It does not end when the database is away.
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

// Close ends all waits, those to come too.
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

// Subscriptions returns how many wait.
func (h *Hub) Subscriptions() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.subscriptions
}

// maxUnsent bounds what waits to be told to other replicas. Beyond, they have to look.
const maxUnsent = 20_000

// Publish says that there is news of these kinds in the workspace. Call it after the commit. It
// never waits.
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

// wake wakes the waiters of this platform. h.mu is held.
func (h *Hub) wake(workspace uuid.UUID, kinds Kind) {
	if p := h.watches[workspace]; p != nil {
		for _, w := range p.subscriptions {
			w.wake(kinds)
		}
	}
}

// Subscription waits for news of a workspace.
type Subscription struct {
	hub       *Hub
	workspace uuid.UUID
	kinds     Kind
	pending   atomic.Uint32 // the kinds that came and were not taken
	wakeups   chan struct{} // of one element, so that news that nobody has taken is one piece of news
}

// Subscribe returns a waiter for news of these kinds. Wait first and look then, so that nothing falls
// between; and Close it when done.
func (h *Hub) Subscribe(workspace uuid.UUID, kinds Kind) *Subscription {
	w := &Subscription{hub: h, workspace: workspace, kinds: kinds, wakeups: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.watches[workspace]
	if p == nil {
		p = &watch{}
		h.watches[workspace] = p
	}
	p.subscriptions, p.idle = append(p.subscriptions, w), false
	h.subscriptions++
	return w
}

// Wake receives when there is news; Take tells of which kinds.
func (w *Subscription) Wake() <-chan struct{} { return w.wakeups }

// Take returns the kinds of the news that came since the last call.
func (w *Subscription) Take() Kind { return Kind(w.pending.Swap(0)) }

// wake never waits.
func (w *Subscription) wake(kinds Kind) {
	if kinds &= w.kinds; kinds == 0 {
		return
	}
	w.pending.Or(uint32(kinds))
	select {
	case w.wakeups <- struct{}{}:
	default:
	}
}

// Close ends the waiting.
func (w *Subscription) Close() {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.watches[w.workspace]
	for i, other := range p.subscriptions {
		if other != w {
			continue
		}
		last := len(p.subscriptions) - 1
		p.subscriptions[i], p.subscriptions[last] = p.subscriptions[last], nil
		p.subscriptions = p.subscriptions[:last]
		h.subscriptions--
		break
	}
	// What the hub knows of the workspace stays for a while: the next poll comes soon.
	if len(p.subscriptions) == 0 && !p.polled {
		delete(h.watches, w.workspace)
	}
}

// jitter keeps those who began together from looking together for ever: between four fifths of d
// and d.
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
