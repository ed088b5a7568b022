package handlers

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxBuckets bounds the callers that have a bucket, at about 300 bytes each.
const maxBuckets = 1 << 14

// buckets are token buckets, one for each recently used key. A full bucket is equivalent to none, so beyond
// maxKeys the least recently used bucket is evicted. If all are in use, a caller may get a fresh bucket too
// early; memory stays bounded.
type buckets[K comparable] struct {
	refill  rate.Limit
	burst   int
	maxKeys int

	mu           sync.Mutex
	byKey        map[K]*list.Element
	recentlyUsed *list.List // of *bucket[K], most recently used first
}

type bucket[K comparable] struct {
	key   K
	limit *rate.Limiter
}

func newBuckets[K comparable](refill rate.Limit, burst, maxKeys int) *buckets[K] {
	return &buckets[K]{refill: refill, burst: burst, maxKeys: maxKeys, byKey: map[K]*list.Element{}, recentlyUsed: list.New()}
}

// take takes a token from the key's bucket and returns 0, or the time until there is one.
func (b *buckets[K]) take(key K) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return take(b.limiter(key))
}

// limiter returns the key's bucket. The caller holds b.mu.
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

// take takes a token and returns 0, or the time until there is one.
func take(limit *rate.Limiter) time.Duration {
	now := time.Now()
	if limit.AllowN(now, 1) {
		return 0
	}
	missing := 1 - limit.TokensAt(now)
	return max(time.Duration(missing/float64(limit.Limit())*float64(time.Second)), 1)
}
