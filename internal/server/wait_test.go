package server_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// held is a poll that may be held.
type held struct {
	begun  time.Time
	answer chan *servertest.Response
}

// hold sends a poll and returns while it is on its way.
func hold(t testing.TB, p *servertest.Platform, w servertest.Workspace, token, query string) held {
	h := held{time.Now(), make(chan *servertest.Response, 1)}
	go func() {
		h.answer <- p.Do(t, servertest.Request{Path: "/workspaces/" + w.ID + "/activity?" + query, Token: token})
	}()
	return h
}

// end waits for the answer, and returns it and how long it took.
func (h held) end(t testing.TB) (*servertest.Response, time.Duration) {
	t.Helper()
	select {
	case r := <-h.answer:
		return r, time.Since(h.begun)
	case <-time.After(testTimeout):
		t.Fatal("the poll is held still")
		return nil, 0
	}
}

// isHeld fails the test if the poll is answered within a while.
func (h held) isHeld(t testing.TB) {
	t.Helper()
	select {
	case r := <-h.answer:
		t.Fatalf("the poll was answered: %d %s", r.Status, r.Body)
	case <-time.After(300 * time.Millisecond):
	}
}

// Planted: no news of messages, of uploads; an answer to the first news, whatever the filter says.
func TestWait_HoldsUntilThereIsSomething(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w, other := p.Create(t, "poll", ""), p.Create(t, "poll", "")
	say(t, p, w, "first")
	last := first(t, p, w, "").ID
	if _, took := hold(t, p, w, w.Token, "wait=55&order=asc").end(t); took > 5*time.Second {
		t.Errorf("a poll was held for %v though there is a row", took)
	}
	message, file := hold(t, p, w, w.Token, "wait=55&since_id="+last), hold(t, p, w, admin, "wait=55&type=chat_upload_receive")
	elsewhere := hold(t, p, other, other.Token, "wait=55")
	message.isHeld(t)
	file.isHeld(t)
	sent := time.Now()
	say(t, p, w, "second")
	r, _ := message.end(t)
	var rows []row
	if r.JSON(t, &rows); len(rows) != 1 || *rows[0].Method != "second" || time.Since(sent) > 3*time.Second {
		t.Errorf("%s after %v", r.Body, time.Since(sent))
	}
	file.isHeld(t)
	sent = time.Now()
	stage(t, p, w, "a")
	r, _ = file.end(t)
	if r.JSON(t, &rows); len(rows) != 1 || *rows[0].Summary != "chat_upload_receive: a" || time.Since(sent) > 3*time.Second {
		t.Errorf("%s after %v", r.Body, time.Since(sent))
	}
	elsewhere.isHeld(t)
	say(t, p, other, "end")
	elsewhere.end(t)
}

func TestWait_EndsWithNothingWhenTheTimeIsOver(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	for query, want := range map[string]time.Duration{"wait=0": 0, "": 0, "wait=1": time.Second, "wait=02&type=x": 2 * time.Second} {
		r, took := hold(t, p, w, w.Token, query).end(t)
		isJSON(t, r, http.StatusOK, `[]`)
		if took < want || took > want+3*time.Second {
			t.Errorf("%q: held for %v", query, took)
		}
	}
	for _, bad := range []string{"-1", "56", "1.5", "1e1", "x", "+5", " 5", "0x10", "99999999999999999999", "55s", "true"} {
		r := call(t, p, http.MethodGet, "/workspaces/"+w.ID+"/activity?wait="+url.QueryEscape(bad), w.Token, "")
		isError(t, r, http.StatusBadRequest, "invalid_parameter", "wait must be ")
	}
	isError(t, call(t, p, http.MethodGet, "/workspaces/"+w.ID+"/activity?wait=55&since_id="+nobody, w.Token, ""), http.StatusGone, "cursor_gone", "")
	isError(t, call(t, p, http.MethodGet, "/workspaces/"+w.ID+"/activity?wait=55", unknownToken, ""), http.StatusUnauthorized, "unauthorized", "")
	isError(t, call(t, p, http.MethodGet, "/workspaces/"+nobody+"/activity?wait=55", admin, ""), http.StatusNotFound, "workspace_not_found", "")
}

// Planted: the token looked at only when the poll comes; only when there is news of tokens.
func TestWait_EndsWithTheToken(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	id, token := mint(t, p, w)
	_, behind := mint(t, p, w)
	poll, late := hold(t, p, w, token, "wait=55"), hold(t, p, w, behind, "wait=55")
	poll.isHeld(t)
	must(t, p, http.StatusOK, http.MethodDelete, "/workspaces/"+w.ID+"/tokens/"+id, w.Token, "", nil)
	r, _ := poll.end(t)
	isError(t, r, http.StatusUnauthorized, "unauthorized", "")
	// Without news of it there is no row to be had all the same.
	late.isHeld(t)
	exec(t, p, `UPDATE workspace_tokens SET revoked_at = now() WHERE prefix = $1`, behind[:13])
	say(t, p, w, "secret")
	r, _ = late.end(t)
	isError(t, r, http.StatusUnauthorized, "unauthorized", "")
	if strings.Contains(string(r.Body), "secret") {
		t.Error("the row was told")
	}
}

// Planted: a poll that was given up goes on holding its place; saturated polls get nothing.
func TestWait_IsBounded(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.MaxWaits = "2" })
	w, other := p.Create(t, "poll", ""), p.Create(t, "poll", "")
	full := func() *servertest.Response {
		return call(t, p, http.MethodGet, "/workspaces/"+w.ID+"/activity?wait=1", w.Token, "")
	}
	ctx, giveUp := context.WithCancel(t.Context())
	given := make(chan struct{})
	go func() {
		defer close(given)
		request, _ := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+"/workspaces/"+w.ID+"/activity?wait=55", nil)
		request.Header.Set("Authorization", "Bearer "+w.Token)
		if answer, err := http.DefaultClient.Do(request); err == nil {
			t.Errorf("answered %d", answer.StatusCode)
		}
	}()
	second := hold(t, p, other, other.Token, "wait=55")
	second.isHeld(t)
	waitUntilHeld(t, p, 2)
	r := full()
	isError(t, r, http.StatusServiceUnavailable, "saturated", "retry")
	if r.Header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
	giveUp()
	<-given
	for begun := time.Now(); full().Status != http.StatusOK; time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > testTimeout {
			t.Fatal("a poll that was given up still counts")
		}
	}
	third := hold(t, p, w, w.Token, "wait=3&type=x")
	third.isHeld(t)
	say(t, p, w, "there") // what there is, is had without waiting
	if r := full(); r.Status != http.StatusOK || !strings.Contains(string(r.Body), "there") {
		t.Errorf("saturated, but with a row to tell: %d %s", r.Status, r.Body)
	}
	say(t, p, other, "end")
	second.end(t)
	third.end(t)
}
