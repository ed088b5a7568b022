package handlers

import (
	"net/http"
	"net/netip"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"github.com/molecule-ai/platform/internal/wsauth"
)

// burstTime times the rate is the burst of an idle token. With the defaults that is 3,000 requests: a poller
// that reconnects to a workspace full of small files (1,000, two requests each) is not slowed down.
const burstTime = 30 * time.Second

// Limits of registrations without a valid token, each of which may create a workspace. A fleet that is set
// up at once fits into the burst. A workspace that presents its token is not limited by these.
const (
	registrationsPerAddress       = 60
	registrationsPerAddressRefill = 10 * time.Second // until one more
	registrationsTotal            = 600
	registrationsTotalRefill      = time.Second
)

// RateLimits limit the rate of requests on this replica: by token, and by the client's address for
// registrations without a valid token. The operator's token has no limit, because all canvases share it and
// one could lock out the others; admission bounds what they send, and its holder can do anything anyway.
//
// A request counts once, on arrival, however long it is held. Invalid tokens are not counted: a limit by
// address would refuse clients that share the address with an attacker, and 256 bits cannot be guessed.
type RateLimits struct {
	tokens           *buckets[uuid.UUID]
	registrations    *buckets[netip.Prefix]
	allRegistrations *rate.Limiter
}

// NewRateLimits allows each token that many requests a second, and thirty times as many at once
// after it was idle. It returns nil, which limits nothing, if perSecond is 0.
func NewRateLimits(perSecond float64) *RateLimits {
	if perSecond <= 0 {
		return nil
	}
	return &RateLimits{
		tokens:           newBuckets[uuid.UUID](rate.Limit(perSecond), max(1, int(perSecond*burstTime.Seconds())), maxBuckets),
		registrations:    newBuckets[netip.Prefix](rate.Every(registrationsPerAddressRefill), registrationsPerAddress, maxBuckets),
		allRegistrations: rate.NewLimiter(rate.Every(registrationsTotalRefill), registrationsTotal),
	}
}

// Guard is middleware that refuses a request if its token exceeds the rate. It needs the caller, so it runs
// after the wsauth guards.
func (r *RateLimits) Guard(c *gin.Context) {
	if err := r.admit(wsauth.CallerOf(c)); err != nil {
		Render(c, err)
		c.Abort()
	}
}

// admit counts a request of an authenticated caller.
func (r *RateLimits) admit(caller wsauth.Caller) error {
	if r == nil || caller.Admin {
		return nil
	}
	if wait := r.tokens.take(caller.TokenID); wait > 0 {
		return tooManyRequests("too many requests with this token; retry later", wait)
	}
	return nil
}

// admitRegistration counts a registration without a live token of the workspace. The limit of the address is
// checked first, so that refused registrations do not consume the limit for all.
func (r *RateLimits) admitRegistration(address string) error {
	if r == nil {
		return nil
	}
	wait := r.registrations.take(clientNetwork(address))
	if wait == 0 {
		wait = take(r.allRegistrations)
	}
	if wait > 0 {
		return tooManyRequests("too many registrations; retry later", wait)
	}
	return nil
}

// clientNetwork returns the addresses that one client is assumed to have: a /64 for IPv6, one address for
// IPv4.
func clientNetwork(address string) netip.Prefix {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return netip.Prefix{} // not an address; such clients share a bucket
	}
	bits := 32
	if a = a.Unmap(); a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // bits is never too large
	return p
}

// tooManyRequests is a 429 with Retry-After in whole seconds, rounded up.
func tooManyRequests(message string, wait time.Duration) *refusal {
	return refuse(http.StatusTooManyRequests, "rate_limited", message).retryIn(int((wait + time.Second - 1) / time.Second))
}
