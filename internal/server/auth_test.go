package server_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

// public are the routes that need no token, and why.
var public = map[string]string{
	"GET /health":         "load balancers have none; it names nothing",
	"GET /readyz":         "load balancers have none; it names nothing",
	"HEAD /health":        "as GET",
	"HEAD /readyz":        "as GET",
	"GET /openapi.yaml":   "the contract is no secret",
	"GET /metrics":        "Prometheus has none; it names no workspace. METRICS_ADDR takes it off the public port",
	"GET /uploads/limits": "a client asks before it has anything to send, and the answer is the same for all",
}

// adminOnly are the routes that are the operator's.
var adminOnly = map[string]bool{
	"POST /workspaces": true, "GET /workspaces": true, "DELETE /workspaces/:id": true,
}

const register = "POST /registry/register"

// scene is what there is to be guarded: a workspace with a file and a spare token, one of
// somebody else and one that was removed.
type scene struct {
	*servertest.Platform
	own, other, removed          servertest.Workspace
	file, removedFile            string
	spare, revoked, removedSpare string
}

func setScene(t testing.TB) scene {
	p := servertest.Start(t)
	s := scene{Platform: p, own: p.Create(t, "poll", ""), other: p.Create(t, "poll", ""), removed: p.Create(t, "poll", "")}
	s.file, s.removedFile = stage(t, p, s.own, "a.txt")[0].ID(), stage(t, p, s.removed, "a.txt")[0].ID()
	s.spare, _ = mint(t, p, s.own)
	s.removedSpare, _ = mint(t, p, s.removed)
	id, token := mint(t, p, s.own)
	must(t, p, http.StatusOK, http.MethodDelete, "/workspaces/"+s.own.ID+"/tokens/"+id, s.own.Token, "", nil)
	s.revoked = token
	remove(t, p, s.removed)
	return s
}

// request is a good request to a route for the workspace, but for the Authorization.
func (s scene) request(method, route string, w servertest.Workspace, authorization string) servertest.Request {
	file, spare := s.file, s.spare
	if w.ID == s.removed.ID {
		file, spare = s.removedFile, s.removedSpare
	}
	r := servertest.Request{Method: method, Header: http.Header{},
		Path: strings.NewReplacer(":id", w.ID, ":file_id", file, ":token_id", spare).Replace(route)}
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	if method != http.MethodPost {
		return r
	}
	r.Header.Set("Content-Type", "application/json")
	body := `{"id":"` + w.ID + `","workspace_id":"` + w.ID + `","agent_card":{},"delivery_mode":"poll","name":"x","method":"message/send"}`
	if strings.HasSuffix(route, "/uploads") {
		r.Header.Set("Content-Type", "multipart/form-data; boundary=b")
		body = "--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"b\"\r\n\r\nb\r\n--b--\r\n"
	}
	r.Body = strings.NewReader(body)
	return r
}

func TestRoutes_Guarded(t *testing.T) {
	t.Parallel()
	s := setScene(t)
	bearer := func(token string) string { return "Bearer " + token }
	callers := []struct {
		name, authorization string
		workspace           servertest.Workspace
	}{
		{"no token", "", s.own},
		{"no token after the scheme", "Bearer ", s.own},
		{"another scheme", "Basic " + s.own.Token, s.own},
		{"no scheme", s.own.Token, s.own},
		{"malformed", bearer("malformed"), s.own},
		{"cut short", bearer(s.own.Token[:len(s.own.Token)-1]), s.own},
		{"too long", bearer(s.own.Token + "A"), s.own},
		{"two tokens", bearer(s.own.Token + " " + s.own.Token), s.own},
		{"in capitals", bearer(strings.ToUpper(s.own.Token)), s.own},
		{"half the admin token", bearer(admin[:len(admin)/2]), s.own},
		{"inbound secret", bearer(s.own.Secret), s.own},
		{"unknown", bearer(unknownToken), s.own},
		{"revoked", bearer(s.revoked), s.own},
		{"another workspace's", bearer(s.other.Token), s.own},
		{"a removed workspace's", bearer(s.removed.Token), s.removed},
		{"a removed workspace's, for another", bearer(s.removed.Token), s.own},
		{"for no workspace", bearer(s.own.Token), servertest.Workspace{ID: nobody}},
	}
	var first *servertest.Response
	for _, route := range routes(t) {
		key := route.Method + " " + route.Path
		if public[key] != "" {
			continue
		}
		for _, caller := range callers {
			r := s.Do(t, s.request(route.Method, route.Path, caller.workspace, caller.authorization))
			switch {
			case key == register && caller.workspace.ID == s.removed.ID:
				isError(t, r, http.StatusGone, "workspace_removed", "removed")
				continue
			case key == register && caller.workspace.ID == nobody:
				// Registration is open. From here on nobody is somebody, with a token that is not s.own's.
				if r.Status != http.StatusOK {
					t.Errorf("%s, %s: %d %s", key, caller.name, r.Status, r.Body)
				}
				continue
			case r.Status != http.StatusUnauthorized:
				t.Errorf("%s, %s: %d %s, want 401", key, caller.name, r.Status, r.Body)
				continue
			case route.Method == http.MethodHead:
				r.Body = first.Body // HTTP sends none
			case first == nil:
				first = r
			}
			same(t, r, first)
		}
	}
	if first == nil || first.Header.Get("WWW-Authenticate") == "" || len(routes(t)) < 18 {
		t.Errorf("the list of routes is short, or a 401 lacks WWW-Authenticate: %v", first)
	}
}

// Without this, the test above would be content with a platform that lets nobody in.
func TestRoutes_OpenToWhoMay(t *testing.T) {
	t.Parallel()
	s := setScene(t)
	for _, route := range routes(t) {
		key := route.Method + " " + route.Path
		for name, token := range map[string]string{"own": s.own.Token, "admin": admin} {
			workspace := s.own
			if adminOnly[key] && name == "own" {
				if r := s.Do(t, s.request(route.Method, route.Path, workspace, "Bearer "+token)); r.Status != http.StatusUnauthorized {
					t.Errorf("%s with a workspace's token: %d %s, want 401", key, r.Status, r.Body)
				}
				continue
			}
			if key == "DELETE /workspaces/:id" {
				workspace = s.other
			}
			// The scheme's case does not matter (RFC 9110, section 11.1).
			r := s.Do(t, s.request(route.Method, route.Path, workspace, "bearer "+token))
			// The spare token can be revoked only once, in whichever order.
			gone := route.Method == http.MethodDelete && strings.Contains(key, "token_id") && r.Status == http.StatusNotFound
			if r.Status >= 300 && !gone {
				t.Errorf("%s with the %s token: %d %s", key, name, r.Status, r.Body)
			}
		}
	}
}

func TestRoutes_PublicOnesNeedNoToken(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	served := map[string]bool{}
	for _, route := range routes(t) {
		key := route.Method + " " + route.Path
		served[key] = true
		if public[key] == "" {
			continue
		}
		if r := call(t, p, route.Method, route.Path, "", ""); r.Status != http.StatusOK {
			t.Errorf("%s: %d %s", key, r.Status, r.Body)
		}
	}
	for key := range public {
		if !served[key] {
			t.Errorf("%s is no route", key)
		}
	}
	for key := range adminOnly {
		if !served[key] {
			t.Errorf("%s is no route", key)
		}
	}
}

// A token that cannot be looked up lets nobody in, and is not the caller's fault.
func TestRoutes_TokenLookupFails(t *testing.T) {
	t.Parallel()
	s := setScene(t)
	exec(t, s.Platform, `ALTER TABLE workspace_tokens RENAME TO hidden`)
	for _, route := range routes(t) {
		key := route.Method + " " + route.Path
		if public[key] != "" || adminOnly[key] {
			continue
		}
		r := s.Do(t, s.request(route.Method, route.Path, s.own, "Bearer "+s.own.Token))
		if route.Method == http.MethodHead {
			if r.Status != http.StatusServiceUnavailable {
				t.Errorf("%s: %d", key, r.Status)
			}
			continue
		}
		isJSON(t, r, http.StatusServiceUnavailable,
			`{"error":"platform datastore unavailable — retry shortly","code":"platform_unavailable"}`)
	}
}

// A revoked token and those of a removed workspace stop working with the next request.
func TestTokens_DieAtOnce(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	id, token := mint(t, p, w)
	show := "/workspaces/" + w.ID
	must(t, p, http.StatusOK, http.MethodGet, show, token, "", nil)
	must(t, p, http.StatusOK, http.MethodDelete, show+"/tokens/"+id, token, "", nil) // by itself
	must(t, p, http.StatusUnauthorized, http.MethodGet, show, token, "", nil)
	must(t, p, http.StatusOK, http.MethodGet, show, w.Token, "", nil)
	remove(t, p, w)
	must(t, p, http.StatusUnauthorized, http.MethodGet, show, w.Token, "", nil)
}
