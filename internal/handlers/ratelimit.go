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

// burstTime is how long a token that was idle may go on at any speed, counted in what it gets in
// that time. With the defaults these are 3,000 requests: a poller that comes back to a workspace
// full of small files (1,000, two requests each) takes them as fast as it can.
const burstTime = 30 * time.Second

// Registrations by nobody known: each may leave a workspace behind. A fleet that is set up at once
// fits into the burst; a workspace that has its token is not among these.
const (
	registrationsPerAddress       = 60
	registrationsPerAddressRefill = 10 * time.Second // for one more
	registrationsTotal            = 600
	registrationsTotalRefill      = time.Second
)

// RateLimits bound how often requests come, on this replica: those with a token by the token, and
// registrations by who has none by the client's address. The operator's token has no limit: all
// canvases share it, so one of them could shut out the others; what they send is bounded by
// admission, and who holds that token can do anything anyway.
//
// A request takes its turn once, when it arrives, however long it is held then. Wrong tokens are
// not counted: who could be refused for them is whoever shares the address of a guesser, and there
// is nothing to guess in 256 bits.
type RateLimits struct {
	tokens           *buckets[uuid.UUID]
	registrations    *buckets[netip.Prefix]
	allRegistrations *rate.Limiter
}

// NewRateLimits allows each token that many requests a second, and thirty times as many at once
// retryIn it was idle. If it is 0 it returns nil, which limits nothing.
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

// Guard refuses a request whose token had too many. It comes after the guard that found out whose
// the token is.
func (r *RateLimits) Guard(c *gin.Context) {
	if err := r.admit(wsauth.CallerOf(c)); err != nil {
		Render(c, err)
		c.Abort()
	}
}

// allow counts a request of a known caller.
func (r *RateLimits) admit(caller wsauth.Caller) error {
	if r == nil || caller.Admin {
		return nil
	}
	if wait := r.tokens.take(caller.TokenID); wait > 0 {
		return tooManyRequests("too many requests with this token; retry later", wait)
	}
	return nil
}

// admitRegistration counts a registration of who has shown no live token of the workspace. The
// address's own share comes first: what one address is refused is not taken from the others.
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

// clientNetwork is what one client has of addresses: of IPv6 it is given a /64.
func clientNetwork(address string) netip.Prefix {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return netip.Prefix{} // no client has such a one; they share
	}
	bits := 32
	if a = a.Unmap(); a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // an address has as many
	return p
}

// tooManyRequests tells when to come back, in whole seconds: never too early.
func tooManyRequests(message string, wait time.Duration) *refusal {
	return refuse(http.StatusTooManyRequests, "rate_limited", message).retryIn(int((wait + time.Second - 1) / time.Second))
}
