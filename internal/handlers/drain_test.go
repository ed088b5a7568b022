package handlers_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// Most clients read no answer before they have sent everything, so the platform reads on after it or the
// receiver has refused. Planted: no drain in Render; none after an early answer of the workspace; one that
// reads the limited body.
func TestUpload_RefusedClientMayFinishSending(t *testing.T) {
	t.Parallel()
	early := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInsufficientStorage) // without reading the body
	}))
	t.Cleanup(early.Close)
	fileCap := func(s *config.Settings) { s.MaxFileBytes = "1MiB" }
	noToken := func(w servertest.Workspace) servertest.Workspace { w.Token = "x"; return w }
	told := func(body string) string { return fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body) }
	chunked := func(body string) string {
		return fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	}
	for _, c := range []struct {
		name, mode, url string
		set             func(*config.Settings)
		as              func(servertest.Workspace) servertest.Workspace
		body            func(string) string
		status          int
	}{
		{name: "a file over the cap", mode: "poll", set: fileCap, body: told, status: http.StatusRequestEntityTooLarge},
		{name: "a length over the cap", mode: "poll", set: smallCaps, body: told, status: http.StatusRequestEntityTooLarge},
		{name: "no length, over the cap", mode: "poll", set: smallCaps, body: chunked, status: http.StatusRequestEntityTooLarge},
		{name: "pushed, over the cap", mode: "push", url: newReceiver(t).URL, set: smallCaps, body: chunked, status: http.StatusRequestEntityTooLarge},
		{name: "the receiver has decided", mode: "push", url: early.URL, body: told, status: http.StatusInsufficientStorage},
		{name: "nobody is there", mode: "push", url: nobody, body: told, status: http.StatusBadGateway},
		{name: "no token", mode: "poll", as: noToken, body: told, status: http.StatusUnauthorized},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			set := []func(*config.Settings){}
			if c.set != nil {
				set = append(set, c.set)
			}
			p := servertest.Start(t, set...)
			w := p.Create(t, c.mode, c.url)
			if c.as != nil {
				w = c.as(w)
			}
			client := dial(t, p.URL)
			header := uploadHeader(w)
			client.send(t, header[:len(header)-len("\r\n")]+c.body(form(file("large.bin", "", pattern(large)))))
			if r := client.response(t); r.Status != c.status {
				t.Errorf("%d %s, want %d", r.Status, r.Body, c.status)
			}
		})
	}
}

// A refused client that does not finish sending must not block other uploads. Planted: drain before the slot
// is released, or before the spool reservation is.
func TestUpload_StallingRefusedClientHoldsNoBudget(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, twoMiB, func(s *config.Settings) { s.MaxUploads, s.MaxFileBytes = "1", "1MiB" })
	w := p.Create(t, "poll", "")
	body := form(file("large.bin", "", pattern(2*mib-4096)))
	stalled := dial(t, p.URL)
	begun := time.Now()
	stalled.send(t, uploadHeader(w, fmt.Sprintf("Content-Length: %d", len(body)))+body[:len(body)-1])
	inTime(t, "the platform to have it", func() bool { return len(p.Logs.Lines(t, "refused")) > 0 })
	if r := post(t, p, w, file("a.bin", "", pattern(mib))); r.Status != http.StatusOK {
		t.Errorf("another upload: %d %s", r.Status, r.Body)
	}
	if took := time.Since(begun); took > 9*time.Second { // the drain timeout is 10 s
		t.Errorf("after %v", took)
	}
	if r := stalled.response(t); r.Status != http.StatusRequestEntityTooLarge {
		t.Errorf("after the drain timeout: %d %s", r.Status, r.Body)
	}
}
