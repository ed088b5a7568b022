package handlers_test

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// trail returns the audit lines of a request.
func trail(t testing.TB, p *servertest.Platform, requestID string) (lines []map[string]any) {
	t.Helper()
	finished(t, p, requestID)
	for _, line := range allLines(t, p) {
		if line["request_id"] == requestID && line["audit"] == true {
			lines = append(lines, line)
		}
	}
	return lines
}

// Planted: each of the lines without "audit"; client_ip missing; the token's id missing where a guard knows
// it, and where only the registration does; a repeated or partial read without a line.
func TestAudit_LinesNameCallerActionAndAddress(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.TrustedProxies = "127.0.0.1" })
	w := p.Create(t, "poll", "")
	path := "/workspaces/" + w.ID
	var tokens []struct{ ID string }
	p.Do(t, servertest.Request{Path: path + "/tokens", Token: w.Token}).JSON(t, &tokens)
	own := map[string]any{"caller": "workspace", "token_id": tokens[0].ID, "workspace_id": w.ID}
	operator := map[string]any{"caller": "admin"}
	with := func(who map[string]any, more ...any) map[string]any {
		all := maps.Clone(who)
		for i := 0; i < len(more); i += 2 {
			all[more[i].(string)] = more[i+1]
		}
		return all
	}
	deed := func(what string, want map[string]any, r servertest.Request) *servertest.Response {
		t.Helper()
		id := uuid.NewString()
		if r.Header == nil {
			r.Header = http.Header{}
		}
		r.Header.Set("X-Forwarded-For", "192.0.2.7")
		answer := do(t, p, id, r)
		lines := trail(t, p, id)
		if len(lines) != 1 || lines[0]["msg"] != what || lines[0]["client_ip"] != "192.0.2.7" {
			t.Fatalf("%s %s: answered %d; audit lines %v, want one with msg %q", r.Method, r.Path, answer.Status, lines, what)
		}
		for name, value := range want {
			if lines[0][name] != value {
				t.Errorf("%s: %s is %v, want %v", what, name, lines[0][name], value)
			}
		}
		if want["caller"] != "workspace" && lines[0]["token_id"] != nil {
			t.Errorf("%s: token %v", what, lines[0]["token_id"])
		}
		return answer
	}
	f := accepted(t, deed("staged", with(own, "filename", "a.txt", "size", 5.0), uploadRequest(w, strings.NewReader(form(file("a.txt", "", "12345"))))))[0]
	which := []any{"file_id", f.ID(), "filename", "a.txt", "size", 5.0}
	content := servertest.Request{Path: pendingPath(w, f, "/content"), Token: w.Token}
	deed("read in part", with(own, append(which, "bytes", 2.0)...), servertest.Request{Path: content.Path, Token: w.Token, Header: http.Header{"Range": {"bytes=1-2"}}})
	deed("fetched", with(own, which...), content)
	deed("read again", with(own, which...), content)
	deed("read again", with(operator, append(which, "workspace_id", w.ID)...), servertest.Request{Path: content.Path, Token: servertest.AdminToken})
	deed("acked", with(own, which...), ackRequest(w, f))

	var minted struct{ ID string }
	r := deed("token minted", own, servertest.Request{Method: http.MethodPost, Path: path + "/tokens", Token: w.Token})
	r.JSON(t, &minted)
	deed("token revoked", with(own, "revoked_token_id", minted.ID), servertest.Request{Method: http.MethodDelete, Path: path + "/tokens/" + minted.ID, Token: w.Token})

	register := func(id, token string) servertest.Request {
		return servertest.Request{Method: http.MethodPost, Path: "/registry/register", Token: token,
			Body: strings.NewReader(fmt.Sprintf(`{"id":%q,"agent_card":{},"delivery_mode":"poll"}`, id))}
	}
	deed("registered", with(own, "token_issued", false), register(w.ID, w.Token))
	deed("registered", with(operator, "workspace_id", w.ID), register(w.ID, servertest.AdminToken))
	newcomer := uuid.NewString()
	var issued struct {
		Token string `json:"auth_token"`
	}
	r = deed("registered", map[string]any{"caller": "anonymous", "workspace_id": newcomer, "token_issued": true}, register(newcomer, ""))
	r.JSON(t, &issued)
	p.Do(t, servertest.Request{Path: "/workspaces/" + newcomer + "/tokens", Token: issued.Token}).JSON(t, &tokens)
	if line := p.Logs.Lines(t, "registered")[2]; line["new_token_id"] != tokens[0].ID {
		t.Errorf("the token that was issued is %v: %v", tokens[0].ID, line)
	}

	var created struct{ ID string }
	r = deed("workspace created", operator, servertest.Request{Method: http.MethodPost, Path: "/workspaces", Token: servertest.AdminToken,
		Body: strings.NewReader(`{"name":"x","delivery_mode":"poll"}`)})
	r.JSON(t, &created)
	deed("workspace removed", with(operator, "workspace_id", created.ID), servertest.Request{Method: http.MethodDelete, Path: "/workspaces/" + created.ID, Token: servertest.AdminToken})
	deed("refused", map[string]any{"caller": "anonymous", "workspace_id": w.ID, "code": "unauthorized"}, servertest.Request{Path: path, Token: "wrong"})
	if strings.Contains(p.Logs.String(), w.Token) {
		t.Error("a token is in the log")
	}
}

// The platform does not know the files of a push upload, but must record the upload.
func TestAudit_IncludesPushUploads(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	receiver := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	w := p.Create(t, "push", receiver.URL)
	id := uuid.NewString()
	do(t, p, id, uploadRequest(w, strings.NewReader(form(file("a.txt", "", "x")))))
	if lines := trail(t, p, id); len(lines) != 1 || lines[0]["msg"] != "forwarded" || lines[0]["workspace_id"] != w.ID {
		t.Errorf("audit lines %v", lines)
	}
}

// A client that guesses tokens must not fill the disk. Planted: no limit.
func TestAudit_RefusedTokensAreLoggedWithinLimits(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	const guesses = 300
	for i := range guesses {
		do(t, p, fmt.Sprintf("guess-%d", i), servertest.Request{Path: "/workspaces/" + w.ID, Token: "wrong"})
	}
	logged := 0
	for _, line := range p.Logs.Lines(t, "refused") {
		if line["audit"] == true {
			logged++
		}
	}
	if logged < 20 || logged > 60 {
		t.Errorf("%d of %d refused tokens have a line", logged, guesses)
	}
}

// allLines returns the log, every line of which must be a JSON object.
func allLines(t testing.TB, p *servertest.Platform) []map[string]any {
	t.Helper()
	return parseLines(t, p.Logs.String())
}
