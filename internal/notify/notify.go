// Package notify wakes those who wait for something to happen in a workspace: polls that are held
// until there is a row, and streams of events.
//
// News says only that it is worth looking. It carries nothing, so nothing is lost with it: who is
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

	all = Rows | Receipts | Access
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
	options Options
	id      string // by which it knows its own notifications
	closed  chan struct{}
	pending chan struct{} // untold is not empty

	mu      sync.Mutex
	places  map[uuid.UUID]*place
	waiters int
	untold  map[uuid.UUID]Kind // what other replicas have not been told yet
}

// A place is a workspace that is waited for.
type place struct {
	waiters []*Waiter
	newest  int64 // of its rows, when the hub last looked
	known   bool  // the hub has looked
	left    bool  // nobody waited when the hub last looked
}

// New returns a hub. It does nothing by itself until Run.
func New(o Options) *Hub {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Hub{
		options: o, id: newID(), closed: make(chan struct{}), pending: make(chan struct{}, 1),
		places: map[uuid.UUID]*place{}, untold: map[uuid.UUID]Kind{},
	}
}

// Run looks for what the news missed, and exchanges news with other replicas, until ctx is done.
// It does not end when the database is away.
func (h *Hub) Run(ctx context.Context) {
	var wg sync.WaitGroup
	if h.options.Newest != nil {
		wg.Go(func() { h.look(ctx) })
	}
	if h.options.DB != nil {
		wg.Go(func() { h.tell(ctx) })
		wg.Go(func() { h.listen(ctx) })
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

// Waiting returns how many wait.
func (h *Hub) Waiting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiters
}

// maxUntold bounds what waits to be told to other replicas. Beyond, they have to look.
const maxUntold = 20_000

// Announce says that there is news of these kinds in the workspace. Call it after the commit. It
// never waits.
func (h *Hub) Announce(workspace uuid.UUID, kinds Kind) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wake(workspace, kinds)
	if h.options.DB == nil {
		return
	}
	if _, ok := h.untold[workspace]; ok || len(h.untold) < maxUntold {
		h.untold[workspace] |= kinds
	}
	select {
	case h.pending <- struct{}{}:
	default:
	}
}

// wake wakes the waiters of this platform. h.mu is held.
func (h *Hub) wake(workspace uuid.UUID, kinds Kind) {
	if p := h.places[workspace]; p != nil {
		for _, w := range p.waiters {
			w.wake(kinds)
		}
	}
}

// Waiter waits for news of a workspace.
type Waiter struct {
	hub       *Hub
	workspace uuid.UUID
	kinds     Kind
	came      atomic.Uint32 // the kinds that came and were not taken
	news      chan struct{} // of one element, so that news that nobody has taken is one piece of news
}

// Wait returns a waiter for news of these kinds. Wait first and look then, so that nothing falls
// between; and Close it when done.
func (h *Hub) Wait(workspace uuid.UUID, kinds Kind) *Waiter {
	w := &Waiter{hub: h, workspace: workspace, kinds: kinds, news: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.places[workspace]
	if p == nil {
		p = &place{}
		h.places[workspace] = p
	}
	p.waiters, p.left = append(p.waiters, w), false
	h.waiters++
	return w
}

// News receives when there is news; Take tells of which kinds.
func (w *Waiter) News() <-chan struct{} { return w.news }

// Take returns the kinds of the news that came since the last call.
func (w *Waiter) Take() Kind { return Kind(w.came.Swap(0)) }

// wake never waits.
func (w *Waiter) wake(kinds Kind) {
	if kinds &= w.kinds; kinds == 0 {
		return
	}
	w.came.Or(uint32(kinds))
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// Close ends the waiting.
func (w *Waiter) Close() {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.places[w.workspace]
	for i, other := range p.waiters {
		if other != w {
			continue
		}
		last := len(p.waiters) - 1
		p.waiters[i], p.waiters[last] = p.waiters[last], nil
		p.waiters = p.waiters[:last]
		h.waiters--
		break
	}
	// What the hub knows of the workspace stays for a while: the next poll comes soon.
	if len(p.waiters) == 0 && !p.known {
		delete(h.places, w.workspace)
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
