package handlers_test

import (
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// twoMiB is a budget for one upload of 2 MiB, of which a workspace gets no more than that.
func twoMiB(s *config.Settings) {
	s.MaxFileBytes, s.MaxRequestBytes, s.SpoolBytes = "2MiB", "2MiB", "2796208B"
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

// begin sends the header of an upload of body and then as much of body as it holds, and waits until that is held.
func begin(t testing.TB, p *servertest.Platform, w servertest.Workspace, body string, send int, more ...string) *wire {
	t.Helper()
	before := reserved(t, p)
	c := dial(t, p.URL)
	c.send(t, uploadHeader(w, append(more, fmt.Sprintf("Content-Length: %d", len(body)), "Expect: 100-continue")...))
	if answer := c.answer(t); answer.StatusCode != http.StatusContinue {
		t.Fatalf("expected 100 Continue, got %s", answer.Status)
	}
	c.send(t, body[:send])
	inTime(t, "what was sent is held", func() bool { return reserved(t, p) >= before+float64(send) })
	return c
}

var reservedBytes = regexp.MustCompile(`(?m)^molecule_spool_reserved_bytes (\S+)$`)

// reserved returns how many bytes uploads have reserved.
func reserved(t testing.TB, p *servertest.Platform) float64 {
	t.Helper()
	found := reservedBytes.FindSubmatch(p.Do(t, servertest.Request{Path: "/metrics"}).Body)
	if found == nil {
		t.Fatal("no metric")
	}
	n, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Many uploads that announce much and hardly send hold what they have sent. Another workspace's upload is accepted.
// Planted: Content-Length reserved; whole MiBs reserved for the first byte.
func TestSpoolBudget_AnnouncedBytesReserveNothing(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, twoMiB)
	w := p.Create(t, "poll", "")
	body := form(file("slow.bin", "", pattern(2*mib-8<<10)))
	slow := make([]*wire, 12)
	for i := range slow {
		slow[i] = begin(t, p, w, body, 1000)
	}
	if got := reserved(t, p); got > mib {
		t.Errorf("%v bytes reserved for %d", got, len(slow)*1000)
	}
	accepted(t, post(t, p, p.Create(t, "poll", ""), file("a.bin", "", pattern(mib))))
	waitForMetric(t, p, "molecule_spool_limit_bytes 2.796208e+06")
	for _, c := range slow[1:] {
		_ = c.Close()
	}
	inTime(t, "the space is free again", func() bool { return reserved(t, p) < 100<<10 })
	slow[0].send(t, body[1000:])
	accepted(t, slow[0].response(t))
	allRoom(t, p)
	waitForMetric(t, p, "molecule_spool_reserved_bytes 0")
}

// One workspace fills what it gets, and no more: the share of another stays free. Planted: a budget without holders.
func TestSpoolBudget_OneWorkspaceLeavesTheShareOfOthers(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, twoMiB)
	w, other := p.Create(t, "poll", ""), p.Create(t, "poll", "")
	body := form(file("slow.bin", "", pattern(mib)))
	held := []*wire{begin(t, p, w, body, mib), begin(t, p, w, body, mib-300<<10)}
	saturated(t, post(t, p, w, file("a.bin", "", pattern(512<<10))))
	accepted(t, post(t, p, other, file("a.bin", "", pattern(512<<10))))
	emptyFolder(t, p.Config.SpoolDir)
	for _, line := range p.Logs.Lines(t, "failed") {
		t.Errorf("saturation is logged as a failure: %v", line)
	}
	for _, c := range held {
		_ = c.Close()
	}
	allRoom(t, p)
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
	held := begin(t, p, p.Create(t, "poll", ""), form(file("slow.bin", "", pattern(mib))), mib)
	before := count(t, p, "pending_uploads")
	saturated(t, chunked(2*mib))
	if n := count(t, p, "pending_uploads"); n != before {
		t.Errorf("%d files staged of an upload that was refused", n-before)
	}
	emptyFolder(t, p.Config.SpoolDir)
	_ = held.Close()
	inTime(t, "room for one without a length", func() bool { return chunked(2*mib-4096).Status == http.StatusOK })
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
			_ = begin(t, p, w, form(file("a.bin", "", content)), 0, "X-Request-ID: unbegun").Close()
			finished(t, p, "unbegun")
		},
		"cut in the middle": func() {
			body := form(file("a.bin", "", content))
			c := begin(t, p, w, body, len(body)/2, "X-Request-ID: cut")
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
	slow := form(file("slow.bin", "", pattern(mib)))
	w := p.Create(t, "poll", "")
	begin(t, p, w, slow, mib)
	begin(t, p, p.Create(t, "poll", ""), slow, 500<<10)
	receiver := newReceiver(t)
	r := post(t, p, p.Create(t, "push", receiver.URL), file("a.bin", "", pattern(mib)))
	if r.Status != http.StatusOK {
		t.Errorf("pushed while the budget is exhausted: %d %s", r.Status, r.Body)
	}
	saturated(t, post(t, p, w, file("a.bin", "", pattern(mib))))
}
