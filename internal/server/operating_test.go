package server_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

const canvas = "https://canvas.example"

func withOrigins(origins string) func(*config.Settings) {
	return func(s *config.Settings) { s.CORSOrigins = origins }
}

func TestOperating_HealthAndReadiness(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	isJSON(t, call(t, p, "GET", "/health", "", ""), http.StatusOK, `{"status":"ok"}`)
	for _, path := range []string{"/health", "/readyz"} {
		if r := call(t, p, "HEAD", path, "", ""); r.Status != http.StatusOK || len(r.Body) > 0 {
			t.Errorf("HEAD %s: %d %q", path, r.Status, r.Body)
		}
	}
	var ready struct {
		Status  string
		Version uint `json:"schema_version"`
		Staging bool
	}
	must(t, p, http.StatusOK, "GET", "/readyz", "", "", &ready)
	if ready.Status != "ready" || ready.Version > 0 && ready.Version < stagingVersion || !ready.Staging {
		t.Errorf("ready: %+v", ready)
	}
}

// preflight asks as a browser does before a request with this method and these headers.
func preflight(t testing.TB, p *servertest.Platform, path, origin, method, headers string) *servertest.Response {
	t.Helper()
	return p.Do(t, servertest.Request{Method: http.MethodOptions, Path: path, Header: http.Header{
		"Origin": {origin}, "Access-Control-Request-Method": {method}, "Access-Control-Request-Headers": {headers},
	}})
}

func names(list string) []string {
	var all []string
	for name := range strings.SplitSeq(list, ",") {
		all = append(all, strings.ToLower(strings.TrimSpace(name)))
	}
	return all
}

func TestCORS_ConfiguredOriginMayDoWhatTheCanvasDoes(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, withOrigins("https://other.example,"+canvas))
	w := p.Create(t, "poll", "")
	for _, route := range routes(t) {
		path := strings.NewReplacer(":id", w.ID, ":file_id", nobody, ":token_id", nobody).Replace(route.Path)
		r := preflight(t, p, path, canvas, route.Method, "authorization,content-type")
		if r.Status != http.StatusNoContent || r.Header.Get("Access-Control-Allow-Origin") != canvas ||
			r.Header.Get("Access-Control-Allow-Credentials") != "true" || !slices.Contains(names(r.Header.Get("Access-Control-Allow-Methods")), strings.ToLower(route.Method)) {
			t.Errorf("%s %s: %d %v", route.Method, path, r.Status, r.Header)
		}
		allowed := names(r.Header.Get("Access-Control-Allow-Headers"))
		for _, name := range []string{"authorization", "content-type", "idempotency-key", "range", "if-range", "if-none-match",
			"x-request-id", "last-event-id", "x-molecule-org-slug", "x-molecule-org-id", "x-workspace-id", "tus-resumable", "upload-length",
			"upload-offset", "upload-metadata", "upload-checksum", "upload-defer-length", "upload-concat"} {
			if !slices.Contains(allowed, name) {
				t.Errorf("header %s is not allowed: %v", name, allowed)
			}
		}
	}
	r := p.Do(t, servertest.Request{Path: "/workspaces/" + w.ID, Token: w.Token, Header: http.Header{"Origin": {canvas}}})
	exposed := names(r.Header.Get("Access-Control-Expose-Headers"))
	if r.Status != http.StatusOK || r.Header.Get("Access-Control-Allow-Origin") != canvas || !slices.Contains(names(r.Header.Get("Vary")), "origin") ||
		r.Header.Get("Access-Control-Allow-Credentials") != "true" {
		t.Errorf("%d %v", r.Status, r.Header)
	}
	for _, name := range []string{"content-disposition", "content-range", "etag", "repr-digest", "retry-after", "x-request-id",
		"location", "upload-offset", "upload-length", "upload-expires", "tus-resumable", "tus-version", "tus-extension", "tus-max-size"} {
		if !slices.Contains(exposed, name) {
			t.Errorf("header %s is not exposed: %v", name, exposed)
		}
	}
	if r = preflight(t, p, "/workspaces/"+w.ID, canvas, http.MethodPatch, "upload-offset"); !slices.Contains(names(r.Header.Get("Access-Control-Allow-Methods")), "patch") {
		t.Errorf("PATCH: %v", r.Header)
	}
	// A page must be able to read why it was refused.
	r = p.Do(t, servertest.Request{Path: "/workspaces/" + w.ID + "?limit=%zz", Token: w.Token, Header: http.Header{"Origin": {canvas}}})
	if r.Status != http.StatusBadRequest || r.Header.Get("Access-Control-Allow-Origin") != canvas {
		t.Errorf("%d %v", r.Status, r.Header)
	}
	r = p.Do(t, servertest.Request{Path: "/workspaces/" + w.ID, Header: http.Header{"Origin": {canvas}}})
	if r.Status != http.StatusUnauthorized || r.Header.Get("Access-Control-Allow-Origin") != canvas {
		t.Errorf("%d %v", r.Status, r.Header)
	}
}

func TestCORS_OtherOriginsMayNothing(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, withOrigins(canvas))
	w := p.Create(t, "poll", "")
	for _, origin := range []string{"https://evil.example", canvas + ".evil.example", "http://canvas.example", canvas + ":8443", "null", strings.ToUpper(canvas)} {
		asked := preflight(t, p, "/workspaces/"+w.ID, origin, "GET", "authorization")
		done := p.Do(t, servertest.Request{Method: "POST", Path: "/workspaces/" + w.ID + "/a2a", Token: w.Token,
			Header: http.Header{"Origin": {origin}}, Body: strings.NewReader(`{"method":"forged"}`)})
		for _, r := range []*servertest.Response{asked, done} {
			isError(t, r, http.StatusForbidden, "origin_not_allowed", "origin")
			for name := range r.Header {
				if strings.HasPrefix(name, "Access-Control-") {
					t.Errorf("%s: %s: %s", origin, name, r.Header.Get(name))
				}
			}
		}
	}
	if rows := read(t, p, w, ""); len(rows) != 0 {
		t.Errorf("%d rows were written", len(rows))
	}
	// Its own pages are not foreign, and programs have no origin.
	r := p.Do(t, servertest.Request{Path: "/health", Header: http.Header{"Origin": {p.URL}}})
	if r.Status != http.StatusOK {
		t.Errorf("own origin: %d %s", r.Status, r.Body)
	}
}

func TestCORS_OffUnlessConfigured(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	r := p.Do(t, servertest.Request{Path: "/health", Header: http.Header{"Origin": {canvas}}})
	if r.Status != http.StatusOK || r.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("%d %v", r.Status, r.Header)
	}
	isError(t, preflight(t, p, "/health", canvas, "GET", ""), http.StatusMethodNotAllowed, "method_not_allowed", "")
}

// Tokens are in a header, not in a cookie, so any origin may be allowed without risk; but a browser must not be
// told to send credentials to a platform that any page may call. Planted: credentials for * too.
func TestCORS_AnyOriginWithoutCredentials(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, withOrigins("*"))
	r := preflight(t, p, "/health", canvas, "GET", "authorization")
	if r.Status != http.StatusNoContent || r.Header.Get("Access-Control-Allow-Origin") != "*" || r.Header.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("%d %v", r.Status, r.Header)
	}
}
