package handlers

import (
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"github.com/molecule-ai/platform/internal/wsauth"
)

// Planted: one bucket for all keys; the wait rounded down; a refused request that consumes future tokens.
func TestBuckets_EachKeyHasItsOwnBurstAndItsOwnRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBuckets[string](2, 5, 10)
		for _, key := range []string{"a", "b"} {
			for i := range 5 {
				if wait := b.take(key); wait != 0 {
					t.Errorf("%s: number %d of the burst waits %v", key, i, wait)
				}
			}
		}
		for range 3 {
			if wait := b.take("a"); wait != time.Second/2 {
				t.Errorf("past the burst: wait %v, want half a second", wait)
			}
		}
		time.Sleep(time.Second / 2)
		if wait := b.take("a"); wait != 0 {
			t.Errorf("after the wait: wait %v more", wait)
		}
		time.Sleep(time.Hour)
		for range 5 {
			b.take("a")
		}
		if wait := b.take("a"); wait == 0 {
			t.Error("an idle key saved up more than the burst")
		}
	})
}

// Planted: no bound; the most recently used bucket evicted; the oldest bucket evicted although it is in use.
func TestBuckets_AreBoundedAndEvictTheIdle(t *testing.T) {
	t.Parallel()
	const most = 10
	b := newBuckets[int](rate.Every(time.Hour), 2, most)
	b.take(-1)
	b.take(-1)
	for key := range 100 * most {
		b.take(key)
		if b.take(-1) == 0 {
			t.Fatalf("the busy key was evicted after %d others", key)
		}
		if len(b.byKey) > most || b.recentlyUsed.Len() != len(b.byKey) {
			t.Fatalf("%d buckets and %d in order, want at most %d", len(b.byKey), b.recentlyUsed.Len(), most)
		}
	}
	if b.take(100*most-2) != 0 || b.take(100*most-2) == 0 {
		t.Error("a recently used key was evicted")
	}
}

// With the defaults, a poller that reconnects may fetch a workspace full of small files without a limit.
func TestRateLimits_APollerMayFetchAFullWorkspaceAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := NewRateLimits(100)
		caller := wsauth.Caller{TokenID: uuid.New()}
		for i := range 2*1000 + 10 {
			if err := r.admit(caller); err != nil {
				t.Fatalf("request %d: %v", i, err)
			}
		}
	})
}

// Planted: by workspace instead of by token; the operator counted too.
func TestRateLimits_AreByTokenAndNotForTheOperator(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := NewRateLimits(0.5) // 15 at once
		workspace := uuid.New()
		one, other := wsauth.Caller{Workspace: workspace, TokenID: uuid.New()}, wsauth.Caller{Workspace: workspace, TokenID: uuid.New()}
		for range 15 {
			if err := r.admit(one); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.admit(one); err == nil {
			t.Error("one more than the burst")
		}
		if err := r.admit(other); err != nil {
			t.Errorf("another token of the workspace: %v", err)
		}
		for range 1000 {
			if err := r.admit(wsauth.Caller{Admin: true}); err != nil {
				t.Fatalf("the operator: %v", err)
			}
		}
	})
}

// Planted: no Retry-After; 0; rounded down, so that a client that waits for it is refused again.
func TestRateLimits_SetRetryAfter(t *testing.T) {
	t.Parallel()
	for _, perSecond := range []float64{0.001, 0.03, 0.4, 0.7, 3, 1000} {
		synctest.Test(t, func(t *testing.T) {
			r, caller := NewRateLimits(perSecond), wsauth.Caller{TokenID: uuid.New()}
			refused := func() *refusal {
				for range int(perSecond*burstTime.Seconds()) + 2 {
					if err := r.admit(caller); err != nil {
						return refusalFor(err)
					}
				}
				t.Fatalf("%v a second: never refused", perSecond)
				return nil
			}
			for range 3 {
				got := refused()
				if got.status != http.StatusTooManyRequests || got.code != "rate_limited" || got.retryAfter < 1 {
					t.Fatalf("%v a second: %+v", perSecond, got)
				}
				if most := int(1/perSecond) + 1; got.retryAfter > most {
					t.Errorf("%v a second: come back in %s s, which is more than %d", perSecond, strconv.Itoa(got.retryAfter), most)
				}
				time.Sleep(time.Duration(got.retryAfter) * time.Second)
				if err := r.admit(caller); err != nil {
					t.Errorf("%v a second: refused after waiting %d s", perSecond, got.retryAfter)
				}
			}
		})
	}
}

// Planted: the total checked first, so that one address exhausts it; no total; no limit for an address that
// cannot be parsed.
func TestRateLimits_RegistrationsPerAddressAndInTotal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := NewRateLimits(100)
		count := func(address string, tries int) (admitted int) {
			for range tries {
				if r.admitRegistration(address) == nil {
					admitted++
				}
			}
			return admitted
		}
		for _, address := range []string{"192.0.2.1", "2001:db8::1", ""} {
			if n := count(address, 10*registrationsTotal); n != registrationsPerAddress {
				t.Errorf("%q: %d at once, want %d", address, n, registrationsPerAddress)
			}
		}
		if n := count("2001:db8::ffff:1", 1); n != 0 {
			t.Error("another address of the same /64 has a share of its own")
		}
		if n := count("2001:db8:0:1::1", 1); n != 1 {
			t.Error("another /64 has none")
		}
		all := 3*registrationsPerAddress + 1
		for i := range 256 {
			all += count("198.51.100."+strconv.Itoa(i), registrationsPerAddress)
		}
		if all != registrationsTotal {
			t.Errorf("%d at once altogether, want %d", all, registrationsTotal)
		}
		wait := refusalFor(r.admitRegistration("203.0.113.1"))
		if wait.code != "rate_limited" || wait.retryAfter != 1 {
			t.Errorf("when everybody's share is used up: %+v", wait)
		}
	})
}

func TestClientNetwork_IsASlash64ForIPv6(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"192.0.2.7": "192.0.2.7/32", "::ffff:192.0.2.7": "192.0.2.7/32", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
		"fe80::1%eth0": "fe80::/64", "::1": "::/64", "": "invalid Prefix", "nowhere": "invalid Prefix",
	} {
		if got := clientNetwork(address).String(); got != want {
			t.Errorf("%q: %s, want %s", address, got, want)
		}
	}
}

func TestRateLimits_ZeroMeansUnlimited(t *testing.T) {
	t.Parallel()
	r := NewRateLimits(0)
	caller := wsauth.Caller{TokenID: uuid.New()}
	for range 10_000 {
		if r.admit(caller) != nil || r.admitRegistration("192.0.2.1") != nil {
			t.Fatal("refused")
		}
	}
}
