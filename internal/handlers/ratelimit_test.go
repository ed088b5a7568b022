package handlers_test

import (
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// onceInALongTime gives each token one request, and the next after 1,000 seconds.
func onceInALongTime(s *config.Settings) { s.RateLimit = "0.001" }

// rateLimited fails the test unless the answer is a 429 with Retry-After.
func rateLimited(t testing.TB, what string, r *servertest.Response) {
	t.Helper()
	seconds, err := strconv.Atoi(r.Header.Get("Retry-After"))
	if r.Status != http.StatusTooManyRequests || err != nil || seconds < 1 {
		t.Errorf("%s: %d %s, Retry-After %q; want a 429 that says when to come back", what, r.Status, r.Body, r.Header.Get("Retry-After"))
	}
}

// tokenRoutes returns the operations of the OpenAPI file that a workspace's token may call, as requests for w.
func tokenRoutes(t testing.TB, w servertest.Workspace) map[string]servertest.Request {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(server.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]servertest.Request{}
	for path, item := range doc.Paths.Map() {
		for method, operation := range item.Operations() {
			security := doc.Security
			if operation.Security != nil {
				security = *operation.Security
			}
			for _, requirement := range security {
				if _, ok := requirement["workspaceToken"]; ok {
					found[method+" "+path] = servertest.Request{
						Method: method, Token: w.Token, Body: strings.NewReader(`{"id":"` + w.ID + `","workspace_id":"` + w.ID + `","agent_card":{}}`),
						Path: strings.NewReplacer("{id}", w.ID, "{file_id}", uuid.NewString(), "{token_id}", uuid.NewString()).Replace(path),
					}
				}
			}
		}
	}
	return found
}

// Planted: the guard not on the group of routes; a heartbeat and a registration not counted; no
// Retry-After; no 429 in the OpenAPI file.
func TestRateLimit_AppliesToEveryTokenRoute(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, onceInALongTime)
	w, other := p.Create(t, "poll", ""), p.Create(t, "poll", "")
	show := servertest.Request{Path: "/workspaces/" + w.ID, Token: w.Token}
	if r := p.Do(t, show); r.Status != http.StatusOK {
		t.Fatalf("the first request: %d %s", r.Status, r.Body)
	}
	routes := tokenRoutes(t, w)
	if len(routes) < 15 {
		t.Errorf("only %d routes in the OpenAPI file", len(routes))
	}
	for name, request := range routes {
		rateLimited(t, name, p.Do(t, request))
	}
	answered(t, p.Do(t, show), http.StatusTooManyRequests,
		map[string]any{"error": "too many requests with this token; retry later", "code": "rate_limited"})

	// Others are not limited: neither the operator in the same workspace, nor another workspace.
	for range 3 {
		if r := p.Do(t, servertest.Request{Path: show.Path, Token: servertest.AdminToken}); r.Status != http.StatusOK {
			t.Errorf("the operator: %d %s", r.Status, r.Body)
		}
	}
	if r := p.Do(t, servertest.Request{Path: "/workspaces/" + other.ID, Token: other.Token}); r.Status != http.StatusOK {
		t.Errorf("another workspace: %d %s", r.Status, r.Body)
	}
	if r := p.Do(t, servertest.Request{Path: show.Path, Token: other.Token}); r.Status != http.StatusUnauthorized {
		t.Errorf("a token of another workspace: %d %s, want 401 whatever it has left", r.Status, r.Body)
	}
}

// Planted: 0 applied as a rate.
func TestRateLimit_ZeroMeansUnlimited(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.RateLimit = "0" })
	w := p.Create(t, "poll", "")
	for range 50 {
		if r := p.Do(t, servertest.Request{Path: "/workspaces/" + w.ID, Token: w.Token}); r.Status != http.StatusOK {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
	}
}

// register registers id as if from that address.
func register(t testing.TB, p *servertest.Platform, id, token, address string) *servertest.Response {
	t.Helper()
	return p.Do(t, servertest.Request{Method: http.MethodPost, Path: "/registry/register", Token: token,
		Header: http.Header{"X-Forwarded-For": {address}},
		Body:   strings.NewReader(`{"id":"` + id + `","agent_card":{},"delivery_mode":"poll"}`)})
}

// An address may register 60 workspaces at once and then one every 10 s, so how many are admitted depends on how
// long the test takes. Planted: no limit; any token taken for a valid one; the limit checked before the token
// is.
func TestRateLimit_LimitsRegistrationsPerAddress(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.TrustedProxies = "127.0.0.1" })
	const address = "2001:db8::1"
	w := p.Create(t, "poll", "")
	admitted := 0
	r := register(t, p, uuid.NewString(), "no token of anybody", address)
	for ; r.Status == http.StatusOK && admitted < 300; r = register(t, p, uuid.NewString(), "no token of anybody", address) {
		admitted++
	}
	rateLimited(t, "a newcomer", r)
	if admitted < 60 {
		t.Errorf("refused after %d, want 60 at once", admitted)
	}
	if n := count(t, p, "workspaces"); n != admitted+1 {
		t.Errorf("%d workspaces, want one for each of %d that were admitted", n, admitted+1)
	}
	for name, r := range map[string]*servertest.Response{
		"who has its token":    register(t, p, w.ID, w.Token, address),
		"the operator":         register(t, p, uuid.NewString(), servertest.AdminToken, address),
		"of another address":   register(t, p, uuid.NewString(), "", "192.0.2.1"),
		"of another IPv6 site": register(t, p, uuid.NewString(), "", "2001:db8:0:1::1"),
	} {
		if r.Status != http.StatusOK {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
		}
	}
}
