package handlers_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// twoMiB is a budget for one upload of 2 MiB, or two of 1 MiB.
func twoMiB(s *config.Settings) {
	s.MaxFileBytes, s.MaxRequestBytes, s.SpoolBytes = "2MiB", "2MiB", "2MiB"
}

func saturated(t testing.TB, r *servertest.Response) {
	t.Helper()
	answered(t, r, http.StatusServiceUnavailable, map[string]any{"error": "the platform is busy; retry shortly", "code": "saturated"})
	if got := r.Header.Get("Retry-After"); got != "5" {
		t.Errorf("Retry-After is %q, want 5", got)
	}
}

// allRoom fails the test unless an upload that needs the whole budget is soon accepted.
func allRoom(t testing.TB, p *servertest.Platform) {
	t.Helper()
	w := p.Create(t, "poll", "")
	whole := pattern(2 * mib) // the form around it is not held, and reserves nothing
	inTime(t, "room for a whole upload", func() bool {
		return post(t, p, w, file("whole.bin", "", whole)).Status == http.StatusOK
	})
}

// begin sends the header of an upload of body, and waits for the 100 Continue: the upload has reserved its bytes
// then.
func begin(t testing.TB, p *servertest.Platform, w servertest.Workspace, body string, more ...string) *wire {
	t.Helper()
	c := dial(t, p.URL)
	c.send(t, uploadHeader(w, append(more, fmt.Sprintf("Content-Length: %d", len(body)), "Expect: 100-continue")...))
	if answer := c.answer(t); answer.StatusCode != http.StatusContinue {
		t.Fatalf("expected 100 Continue, got %s", answer.Status)
	}
	return c
}

// Planted: no budget; only received bytes reserved; the reservation of a staged upload not released; a refused
// upload that reserves.
func TestSpoolBudget_AnnouncedBytesAreReservedBeforeReading(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, twoMiB)
	w := p.Create(t, "poll", "")
	body := form(file("slow.bin", "", pattern(mib)))
	slow := begin(t, p, w, body) // only announced, no byte is sent

	// An upload that does not fit is refused before its body: it gets no 100 Continue.
	late := dial(t, p.URL)
	late.send(t, uploadHeader(w, fmt.Sprintf("Content-Length: %d", len(body)), "Expect: 100-continue", "X-Request-ID: late"))
	saturated(t, late.response(t))
	for range 3 {
		saturated(t, post(t, p, w, file("a.bin", "", pattern(mib))))
	}
	accepted(t, post(t, p, w, file("small.txt", "", "there is room for this one")))
	emptyFolder(t, p.Config.SpoolDir)
	waitForMetric(t, p, fmt.Sprintf("molecule_spool_reserved_bytes %v", float64(len(body))))
	waitForMetric(t, p, "molecule_spool_limit_bytes 2.097152e+06")

	slow.send(t, body)
	accepted(t, slow.response(t))
	allRoom(t, p)
	waitForMetric(t, p, "molecule_spool_reserved_bytes 0")
}

// waitForMetric waits until the metrics have that line.
func waitForMetric(t testing.TB, p *servertest.Platform, metric string) {
	t.Helper()
	inTime(t, metric, func() bool {
		return strings.Contains(string(p.Do(t, servertest.Request{Path: "/metrics"}).Body), "\n"+metric+"\n")
	})
}

// Planted: Content-Length trusted, so that a body without one is not counted; a step that is not reserved; a
// refusal midway reported as a broken body; some of the files staged.
func TestSpoolBudget_ChunkedBodyReservesAsItArrives(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, twoMiB)
	w := p.Create(t, "poll", "")
	chunked := func(size int) *servertest.Response {
		return p.Do(t, uploadRequest(w, struct{ *strings.Reader }{strings.NewReader(form(file("a.bin", "", pattern(size))))}))
	}
	accepted(t, chunked(mib))
	held := begin(t, p, w, form(file("slow.bin", "", pattern(mib))))
	before := count(t, p, "pending_uploads")
	saturated(t, chunked(mib+mib/2))
	if n := count(t, p, "pending_uploads"); n != before {
		t.Errorf("%d files staged of an upload that was refused", n-before)
	}
	emptyFolder(t, p.Config.SpoolDir)
	_ = held.Close()
	inTime(t, "room for one without a length", func() bool { return chunked(mib+mib/2).Status == http.StatusOK })
	allRoom(t, p)
}

// These uploads end in different ways, and all must release their reservation. Planted: released only when
// staged; not when cancelled by the client; not when refused for the form, the key or the quota.
func TestSpoolBudget_IsReleasedHoweverAnUploadEnds(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, twoMiB, func(s *config.Settings) { s.QuotaFiles = "1"; s.MaxFiles = "1" })
	w := p.Create(t, "poll", "")
	content := pattern(mib + mib/2)
	accepted(t, post(t, p, w, file("a.bin", "", "a")))
	for name, end := range map[string]func(){
		"cut before its first byte": func() {
			_ = begin(t, p, w, form(file("a.bin", "", content)), "X-Request-ID: unbegun").Close()
			finished(t, p, "unbegun")
		},
		"cut in the middle": func() {
			body := form(file("a.bin", "", content))
			c := begin(t, p, w, body, "X-Request-ID: cut")
			c.send(t, body[:len(body)/2])
			_ = c.Close()
			finished(t, p, "cut")
		},
		"over its quota": func() {
			if r := post(t, p, w, file("b.bin", "", content)); r.Status != http.StatusInsufficientStorage {
				t.Errorf("over its quota: %d %s", r.Status, r.Body)
			}
		},
		"too many files": func() {
			if r := post(t, p, w, file("b.bin", "", content), file("c.bin", "", "c")); r.Status != http.StatusBadRequest {
				t.Errorf("too many files: %d %s", r.Status, r.Body)
			}
		},
		"no files": func() {
			if r := post(t, p, w, field("note", content)); r.Status != http.StatusBadRequest {
				t.Errorf("no files: %d %s", r.Status, r.Body)
			}
		},
		"too long": func() {
			if r := post(t, p, w, file("b.bin", "", pattern(2*mib+4096))); r.Status != http.StatusRequestEntityTooLarge {
				t.Errorf("too long: %d %s", r.Status, r.Body)
			}
		},
		"a bad key": func() {
			request := uploadRequest(w, strings.NewReader(form(file("b.bin", "", content))))
			request.Header.Set("Idempotency-Key", "not one key")
			if r := p.Do(t, request); r.Status != http.StatusBadRequest {
				t.Errorf("a bad key: %d %s", r.Status, r.Body)
			}
		},
	} {
		end()
		t.Log(name)
		allRoom(t, p)
		emptyFolder(t, p.Config.SpoolDir)
	}
}

// Planted: a reservation for a streamed body.
func TestSpoolBudget_PushUploadsReserveNothing(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, twoMiB)
	begin(t, p, p.Create(t, "poll", ""), form(file("slow.bin", "", pattern(2*mib))))
	receiver := newReceiver(t)
	r := post(t, p, p.Create(t, "push", receiver.URL), file("a.bin", "", pattern(mib)))
	if r.Status != http.StatusOK {
		t.Errorf("pushed while the budget is exhausted: %d %s", r.Status, r.Body)
	}
	saturated(t, post(t, p, p.Create(t, "poll", ""), file("a.bin", "", pattern(mib))))
}
