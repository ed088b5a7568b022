package handlers_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

// The route, from the rotation to the secret that the receiver sees. Planted: the route not guarded; the new secret
// presented before the workspace has it; no 503 after revoke_now; the secret in the audit line.
func TestPush_RotatedSecret(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	receiver := newReceiver(t)
	w, other := p.Create(t, "push", receiver.URL), p.Create(t, "poll", "")
	var secrets []string
	rotate := func(token, body string, status int) string {
		t.Helper()
		r := p.Do(t, servertest.Request{
			Method: http.MethodPost, Path: "/workspaces/" + w.ID + "/inbound-secret", Token: token, Body: bytes.NewReader([]byte(body)),
			Header: http.Header{"Content-Type": {"application/json"}},
		})
		if r.Status != status {
			t.Fatalf("%d %s, want %d", r.Status, r.Body, status)
		}
		var answer struct {
			Secret string `json:"platform_inbound_secret"`
		}
		r.JSON(t, &answer)
		secrets = append(secrets, answer.Secret)
		return answer.Secret
	}
	presented := func() string {
		t.Helper()
		if r := push(t, p, w, formType, strings.NewReader(form(file("a", "", "b")))); r.Status != http.StatusOK {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		return strings.TrimPrefix(receiver.only(t).header.Get("Authorization"), "Bearer ")
	}
	beat := func() {
		t.Helper()
		body := bytes.NewReader([]byte(`{"workspace_id":"` + w.ID + `"}`))
		if r := p.Do(t, servertest.Request{Method: http.MethodPost, Path: "/registry/heartbeat", Token: w.Token, Body: body}); r.Status != http.StatusOK {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
	}

	for _, token := range []string{"", other.Token} {
		rotate(token, "", http.StatusUnauthorized)
	}
	rotate(servertest.AdminToken, `{"revoke_now":1}`, http.StatusBadRequest)
	rotate(servertest.AdminToken, "{", http.StatusBadRequest)
	if got := presented(); got != w.Secret {
		t.Errorf("presented %q, want the first", got)
	}
	first := rotate(servertest.AdminToken, "", http.StatusOK)
	if got := presented(); got != w.Secret {
		t.Errorf("after a rotation: presented %q, want the first until the workspace has the new one", got)
	}
	beat()
	if got := presented(); got != first {
		t.Errorf("after a heartbeat: presented %q, want %q", got, first)
	}
	second := rotate(servertest.AdminToken, `{"revoke_now":true}`, http.StatusOK)
	r := push(t, p, w, formType, strings.NewReader(form(file("a", "", "b"))))
	if r.Status != http.StatusServiceUnavailable || !strings.Contains(string(r.Body), "workspace re-registering") || r.Header.Get("Retry-After") != "30" {
		t.Errorf("revoked: %d %s", r.Status, r.Body)
	}
	beat()
	if got := presented(); got != second {
		t.Errorf("after a heartbeat: presented %q, want %q", got, second)
	}
	third := rotate(w.Token, "{}", http.StatusOK)
	if got := presented(); got != third {
		t.Errorf("rotated by the workspace: presented %q, want %q", got, third)
	}
	if lines := p.Logs.Lines(t, "inbound secret rotated"); len(lines) != 3 || lines[0]["audit"] != true || lines[0]["workspace_id"] != w.ID {
		t.Errorf("audit lines %v, want 3", lines)
	}
	for _, secret := range secrets {
		if secret != "" && strings.Contains(p.Logs.String(), secret) {
			t.Error("the log has a secret")
		}
	}
}
