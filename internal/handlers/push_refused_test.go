package handlers_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

var unreachable = map[string]any{"error": "workspace unreachable", "code": "workspace_unreachable"}

// nobody is a URL on which nothing listens.
const nobody = "http://127.0.0.1:1"

func TestPush_LegacyWorkspaceWithoutURLHasNoCallbackURL(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "push", "")
	exec(t, p, "UPDATE workspaces SET delivery_mode = NULL, url = NULL WHERE id = $1", w.ID)
	wantNoCallbackURL(t, post(t, p, w, file("a", "", "a")))
	nothingStaged(t, p)
}

func TestPush_WorkspaceWithoutURLYetIs503WithRetryAfter(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	r := post(t, p, p.Create(t, "push", ""), file("a", "", "a"))
	answered(t, r, http.StatusServiceUnavailable, map[string]any{"error": "workspace url not registered yet", "code": "url_not_registered"})
	if got := r.Header.Get("Retry-After"); got == "" {
		t.Error("no Retry-After")
	}
	nothingStaged(t, p)
}

// Planted: a missing secret is refused but not generated.
func TestPush_MissingSecretIsMintedAndDeliveredByTheNextHeartbeat(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	receiver := newReceiver(t)
	w := p.Create(t, "push", receiver.URL)
	exec(t, p, "UPDATE workspaces SET platform_inbound_secret = NULL WHERE id = $1", w.ID)

	r := post(t, p, w, file("a", "", "a"))
	answered(t, r, http.StatusServiceUnavailable, map[string]any{
		"error": "workspace re-registering — please retry in 30 seconds", "code": "workspace_reregistering", "retry_after_seconds": 30,
	})
	if got := r.Header.Get("Retry-After"); got != "30" {
		t.Errorf("Retry-After is %q, want 30", got)
	}
	if n := len(receiver.requests); n != 0 {
		t.Errorf("receiver was called %d times without a secret", n)
	}
	var minted string
	if err := p.DB.QueryRow("SELECT platform_inbound_secret FROM workspaces WHERE id = $1", w.ID).Scan(&minted); err != nil || minted == "" || minted == w.Secret {
		t.Fatalf("secret is %q (%v), want a new one", minted, err)
	}

	var heartbeat struct {
		Secret string `json:"platform_inbound_secret"`
	}
	p.Do(t, servertest.Request{
		Method: http.MethodPost, Path: "/registry/heartbeat", Token: w.Token, Header: http.Header{"Content-Type": {"application/json"}},
		Body: strings.NewReader(`{"workspace_id":"` + w.ID + `"}`),
	}).JSON(t, &heartbeat)
	if heartbeat.Secret != minted {
		t.Errorf("heartbeat says %q, want the minted %q", heartbeat.Secret, minted)
	}
	if r := post(t, p, w, file("a", "", "a")); r.Status != http.StatusOK {
		t.Fatalf("after the heartbeat: %d %s", r.Status, r.Body)
	}
	if got := receiver.only(t).header.Get("Authorization"); got != "Bearer "+minted {
		t.Errorf("called with %q, want the minted secret", got)
	}
	if strings.Contains(p.Logs.String(), minted) {
		t.Error("the secret is in the log")
	}
}

func TestPush_UnreachableReceiver(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	hangsUp := newReceiver(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	tooMuch := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 5*mib)) })
	for name, url := range map[string]string{"nobody listens": nobody, "hangs up": hangsUp.URL, "answers too much": tooMuch.URL} {
		t.Run(name, func(t *testing.T) {
			answered(t, post(t, p, p.Create(t, "push", url), file("a", "", "a")), http.StatusBadGateway, unreachable)
		})
	}
	nothingStaged(t, p)
}

// A stored URL that the guard denies gets the same answer as one on which nothing listens: callers must not
// learn about the platform's own network.
func TestPush_GuardRefusalIsReportedAsUnreachable(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.PushAllowCIDRs = "" })
	receiver := newReceiver(t)
	for name, url := range map[string]string{
		"loopback": receiver.URL, "loopback by name": strings.Replace(receiver.URL, "127.0.0.1", "localhost", 1),
		"metadata": "http://169.254.169.254/latest", "no such scheme": "file:///etc/passwd", "no URL": "http://[",
	} {
		t.Run(name, func(t *testing.T) {
			w := p.Create(t, "push", "")
			exec(t, p, "UPDATE workspaces SET url = $2 WHERE id = $1", w.ID, url)
			answered(t, post(t, p, w, file("a", "", "a")), http.StatusBadGateway, unreachable)
		})
	}
	if n := len(receiver.requests); n != 0 {
		t.Errorf("receiver behind the guard was called %d times", n)
	}
}

// The cap applies to push uploads too, with and without a Content-Length. The receiver must not take the
// truncated body for a complete one.
func TestPush_BodyOverTheCap(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, smallCaps)
	receiver := newReceiver(t)
	w := p.Create(t, "push", receiver.URL)
	body := struct{ *strings.Reader }{strings.NewReader(pattern(3*mib + 1))} // hides the length
	answered(t, p.Do(t, uploadRequest(w, body)), http.StatusRequestEntityTooLarge, requestTooLarge(2*mib))
	eventually(t, "receiver to see the end", func() bool { return len(receiver.requests) > 0 })
	if got := receiver.only(t); got.err == nil {
		t.Errorf("receiver saw a complete request of %d bytes", len(got.body))
	}
}
