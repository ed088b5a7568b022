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
	refill  rate.Limit
	burst   int
	maxKeys int

	mu           sync.Mutex
	byKey        map[K]*list.Element
	recentlyUsed *list.List // of *bucket[K]; the one used last is in front
}

type bucket[K comparable] struct {
	key   K
	limit *rate.Limiter
}

func newBuckets[K comparable](refill rate.Limit, burst, maxKeys int) *buckets[K] {
	return &buckets[K]{refill: refill, burst: burst, maxKeys: maxKeys, byKey: map[K]*list.Element{}, recentlyUsed: list.New()}
}

// take takes one from the key's bucket and returns 0, or how long it takes until there is one.
func (b *buckets[K]) take(key K) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return take(b.limiter(key))
}

// limiter returns the key's bucket.
func (b *buckets[K]) limiter(key K) *rate.Limiter {
	if e, ok := b.byKey[key]; ok {
		b.recentlyUsed.MoveToFront(e)
		return e.Value.(*bucket[K]).limit
	}
	if len(b.byKey) >= b.maxKeys {
		idle := b.recentlyUsed.Remove(b.recentlyUsed.Back()).(*bucket[K])
		delete(b.byKey, idle.key)
	}
	limit := rate.NewLimiter(b.refill, b.burst)
	b.byKey[key] = b.recentlyUsed.PushFront(&bucket[K]{key, limit})
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
