package handlers

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxBuckets is how many callers are remembered at once, at about 300 bytes each.
const maxBuckets = 1 << 14

// buckets are token buckets, one for each key that was seen lately. A bucket that is full again
// says no more than none at all, so when there are too many, the one that was not used for longest
// goes. If all are in use, a caller may so get a fresh bucket early; memory is never the price.
type buckets[K comparable] struct {
	refill rate.Limit
	burst  int
	most   int

	mu    sync.Mutex
	byKey map[K]*list.Element
	used  *list.List // of *bucket[K]; the one used last is in front
}

type bucket[K comparable] struct {
	key   K
	limit *rate.Limiter
}

func newBuckets[K comparable](refill rate.Limit, burst, most int) *buckets[K] {
	return &buckets[K]{refill: refill, burst: burst, most: most, byKey: map[K]*list.Element{}, used: list.New()}
}

// take takes one from the key's bucket and returns 0, or how long it takes until there is one.
func (b *buckets[K]) take(key K) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return take(b.of(key))
}

// of returns the key's bucket.
func (b *buckets[K]) of(key K) *rate.Limiter {
	if e, ok := b.byKey[key]; ok {
		b.used.MoveToFront(e)
		return e.Value.(*bucket[K]).limit
	}
	if len(b.byKey) >= b.most {
		idle := b.used.Remove(b.used.Back()).(*bucket[K])
		delete(b.byKey, idle.key)
	}
	limit := rate.NewLimiter(b.refill, b.burst)
	b.byKey[key] = b.used.PushFront(&bucket[K]{key, limit})
	return limit
}

// take takes one from a bucket and returns 0, or how long it takes until there is one.
func take(limit *rate.Limiter) time.Duration {
	now := time.Now()
	if limit.AllowN(now, 1) {
		return 0
	}
	missing := 1 - limit.TokensAt(now)
	return max(time.Duration(missing/float64(limit.Limit())*float64(time.Second)), 1)
}
