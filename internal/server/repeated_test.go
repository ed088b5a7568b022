package server_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// sentAgain is a message with this envelope id, messageId and text.
func sentAgain(id int, messageID, text string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"message/send","params":{"message":{"role":"user","messageId":%q,"parts":[{"kind":"text","text":%q}]}}}`,
		id, messageID, text)
}

// A sender that got no answer sends again; the agent must not do the work twice. Planted: a key by messageId alone, by
// the body with its id, without the sender; a key that is not renewed when it has expired.
func TestRepeated_PollMessageIsOneRow(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w, other := p.Create(t, "poll", ""), p.Create(t, "poll", "")
	const queued = `{"status":"queued","delivery_mode":"poll","method":"message/send"}`
	post := func(w servertest.Workspace, token, message string, rows int) {
		t.Helper()
		isJSON(t, call(t, p, "POST", "/workspaces/"+w.ID+"/a2a", token, message), http.StatusOK, queued)
		if got := len(read(t, p, w, "")); got != rows {
			t.Errorf("%s: %d rows, want %d", message, got, rows)
		}
	}
	post(w, w.Token, sentAgain(1, "m", "a"), 1)
	post(w, w.Token, sentAgain(2, "m", "a"), 1)
	post(w, w.Token, `{"id":3,"method":"message/send","params": {"message":{"parts":[{"type":"text","text":"a"}],"messageId":"m"}}}`, 1)
	post(w, w.Token, sentAgain(1, "m", "b"), 2)
	post(w, w.Token, sentAgain(1, "n", "a"), 3)
	post(w, admin, sentAgain(1, "m", "a"), 4)
	post(other, other.Token, sentAgain(1, "m", "a"), 1)
	// Without a messageId, or with another method, two are two.
	const anonymous = `{"method":"message/send","params":{"message":{"parts":[]}}}`
	post(w, w.Token, anonymous, 5)
	post(w, w.Token, anonymous, 6)
	exec(t, p, `UPDATE message_keys SET expires_at = now() - interval '1 second'`)
	post(w, w.Token, sentAgain(4, "m", "a"), 7)
	post(w, w.Token, sentAgain(5, "m", "a"), 7)
}

func TestRepeated_ConcurrentPollMessagesAreOneRow(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if r := call(t, p, "POST", "/workspaces/"+w.ID+"/a2a", w.Token, sentAgain(i, "m", "a")); r.Status != http.StatusOK {
				t.Errorf("%d %s", r.Status, r.Body)
			}
		})
	}
	wg.Wait()
	if rows := read(t, p, w, ""); len(rows) != 1 {
		t.Errorf("%d rows, want 1", len(rows))
	}
}

// Planted: a failed call kept as the answer; a running one called again; the answer of the first not kept.
func TestRepeated_PushMessageIsForwardedUntilItSucceeds(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	called, answer := make(chan struct{}, 4), make(chan int)
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		n := calls.Add(1)
		called <- struct{}{}
		w.Header().Set("Content-Type", "application/json")
		select {
		case status := <-answer:
			w.WriteHeader(status)
		case <-r.Context().Done():
		}
		_, _ = fmt.Fprintf(w, `{"call":%d}`, n)
	}))
	t.Cleanup(agent.Close)
	p := servertest.Start(t, func(s *config.Settings) { s.PushAllowCIDRs = "127.0.0.0/8" })
	w := p.Create(t, "push", agent.URL)
	// A call that is missing must fail the test, not hold it.
	respond := func(status int) {
		t.Helper()
		select {
		case answer <- status:
		case <-time.After(testTimeout):
			t.Fatal("the agent waits for no answer")
		}
	}
	awaitCall := func() {
		t.Helper()
		select {
		case <-called:
		case <-time.After(testTimeout):
			t.Fatal("the agent is not called")
		}
	}
	post := func(id int) *servertest.Response {
		return call(t, p, "POST", "/workspaces/"+w.ID+"/a2a", w.Token, sentAgain(id, "m", "a"))
	}
	for n, status := range []int{http.StatusInternalServerError, http.StatusOK} {
		done := make(chan *servertest.Response, 1)
		go func() { done <- post(n) }()
		awaitCall()
		running := post(9)
		isError(t, running, http.StatusConflict, "message_in_progress", "still being called")
		if running.Header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		respond(status)
		if r := <-done; r.Status != status || string(r.Body) != fmt.Sprintf(`{"call":%d}`, n+1) {
			t.Errorf("call %d: %d %s", n+1, r.Status, r.Body)
		}
	}
	again := post(3)
	if again.Status != http.StatusOK || string(again.Body) != `{"call":2}` || again.Header.Get("Content-Type") != "application/json" {
		t.Errorf("sent again: %d %s %v", again.Status, again.Body, again.Header)
	}
	if n := len(read(t, p, w, "")); n != 2 || calls.Load() != 2 {
		t.Errorf("%d rows and %d calls, want 2 each", n, calls.Load())
	}
	// A platform that crashed in a call leaves a claim, which ends.
	exec(t, p, `UPDATE message_keys SET answer_status = NULL, claimed_until = now() - interval '1 second'`)
	done := make(chan *servertest.Response, 1)
	go func() { done <- post(4) }()
	awaitCall()
	respond(http.StatusAccepted)
	if r := <-done; r.Status != http.StatusAccepted {
		t.Errorf("after the claim: %d %s", r.Status, r.Body)
	}
}
