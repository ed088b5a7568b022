// Package fairshare shares out what all clients need: memory, temporary space, places for uploads, downloads, streams
// and held polls, database connections.
//
// A Budget is a number of units. Each holder (a workspace, all its tokens together) is admitted while anything is free
// until it has a quarter of the units; above that only while more than a quarter stays free for others. So no holder
// can starve another, whatever it sends, and one that is alone can use three quarters. Units that were given are never
// taken back.
//
// The package knows nothing of HTTP or the database.
package fairshare

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/google/uuid"
)

// ErrSaturated means that the budget has no units for this holder at the moment. Retrying later can succeed.
var ErrSaturated = errors.New("fairshare: budget exhausted")

// Unlimited is a budget that never refuses.
const Unlimited = math.MaxInt64

// A Budget shares a number of units among holders. It is safe for concurrent use.
type Budget struct {
	total int64
	share int64 // a quarter, at least 1

	mu     sync.Mutex
	free   int64
	held   map[uuid.UUID]int64
	queues []*queue // of the holders that wait, in the order in which they are served next
}

// A queue has the waiting calls of one holder, in the order of their arrival. A queue for each holder keeps Release
// cheap when one holder waits thousands of times.
type queue struct {
	holder  uuid.UUID
	waiters []*waiter
}

type waiter struct {
	units   int64
	granted chan struct{}
}

// New returns a budget of that many units, at least 1.
func New(units int64) *Budget {
	units = max(units, 1)
	return &Budget{total: units, share: max(units/4, 1), free: units, held: map[uuid.UUID]int64{}}
}

// Take gives the holder n units until they are released, or returns ErrSaturated at once.
func (b *Budget) Take(holder uuid.UUID, n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.admits(holder, n) {
		return fmt.Errorf("%w: %d of %d units are free", ErrSaturated, b.free, b.total)
	}
	b.give(holder, n)
	return nil
}

// Acquire is Take that waits until the units are there or ctx is done; then it returns the context's error. Holders
// that wait are served in turn, each in the order of its calls; one above its share lets the others pass.
// ErrSaturated if the budget is smaller than n.
func (b *Budget) Acquire(ctx context.Context, holder uuid.UUID, n int64) error {
	if n > b.total {
		return fmt.Errorf("%w: %d units of %d", ErrSaturated, n, b.total)
	}
	b.mu.Lock()
	if b.admits(holder, n) {
		b.give(holder, n)
		b.mu.Unlock()
		return nil
	}
	w := &waiter{units: n, granted: make(chan struct{})}
	b.enqueue(holder, w)
	b.mu.Unlock()
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.dequeue(holder, w) {
		b.release(holder, n) // granted at the same moment
	}
	return ctx.Err()
}

// Do calls do while the holder has a unit, for which it waits as Acquire does.
func (b *Budget) Do(ctx context.Context, holder uuid.UUID, do func() error) error {
	if err := b.Acquire(ctx, holder, 1); err != nil {
		return err
	}
	defer b.Release(holder, 1)
	return do()
}

// Release returns n of the holder's units. Releasing more than the holder has is a bug of the caller, and panics.
func (b *Budget) Release(holder uuid.UUID, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.release(holder, n)
}

// Free returns how many units nobody holds.
func (b *Budget) Free() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.free
}

// Waiting returns how many calls of Acquire wait.
func (b *Budget) Waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, q := range b.queues {
		n += len(q.waiters)
	}
	return n
}

// Total returns how many units the budget has.
func (b *Budget) Total() int64 { return b.total }

// Share returns how many units a holder gets while anything is free.
func (b *Budget) Share() int64 { return b.share }

// admits reports whether the holder may have n more units now: within its share while they are free, above it while a
// share stays free.
func (b *Budget) admits(holder uuid.UUID, n int64) bool {
	if n > b.free {
		return false
	}
	held := b.held[holder]
	return held+n <= b.share || b.free-n >= b.share
}

func (b *Budget) give(holder uuid.UUID, n int64) {
	if n == 0 {
		return
	}
	b.free -= n
	b.held[holder] += n
}

func (b *Budget) release(holder uuid.UUID, n int64) {
	held := b.held[holder] - n
	if held < 0 {
		panic(fmt.Sprintf("fairshare: holder %s releases %d units more than it has", holder, -held))
	}
	b.free += n
	if held == 0 {
		delete(b.held, holder)
	} else {
		b.held[holder] = held
	}
	b.serve()
}

// serve gives units to the first waiter that is admitted, whose holder is then the last in turn, until none is.
func (b *Budget) serve() {
	for i := 0; i < len(b.queues) && b.free > 0; {
		q := b.queues[i]
		w := q.waiters[0]
		if !b.admits(q.holder, w.units) {
			i++
			continue
		}
		b.give(q.holder, w.units)
		close(w.granted)
		q.waiters[0], q.waiters = nil, q.waiters[1:]
		b.queues = slices.Delete(b.queues, i, i+1)
		if len(q.waiters) > 0 {
			b.queues = append(b.queues, q)
		}
	}
}

func (b *Budget) enqueue(holder uuid.UUID, w *waiter) {
	i := slices.IndexFunc(b.queues, func(q *queue) bool { return q.holder == holder })
	if i < 0 {
		b.queues = append(b.queues, &queue{holder: holder, waiters: []*waiter{w}})
		return
	}
	b.queues[i].waiters = append(b.queues[i].waiters, w)
}

// dequeue removes a waiter that gives up, and reports whether it was still waiting. A large call that gives up may let
// the holder's next one pass.
func (b *Budget) dequeue(holder uuid.UUID, w *waiter) bool {
	i := slices.IndexFunc(b.queues, func(q *queue) bool { return q.holder == holder })
	if i < 0 {
		return false
	}
	q := b.queues[i]
	at := slices.Index(q.waiters, w)
	if at < 0 {
		return false
	}
	if q.waiters = slices.Delete(q.waiters, at, at+1); len(q.waiters) == 0 {
		b.queues = slices.Delete(b.queues, i, i+1)
	}
	b.serve()
	return true
}
