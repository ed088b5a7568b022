package handlers_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

func ackRequest(w servertest.Workspace, f stagedFile) servertest.Request {
	return servertest.Request{Method: http.MethodPost, Path: pendingPath(w, f, "/ack"), Token: w.Token}
}

// ack acknowledges a file, which must succeed.
func ack(t testing.TB, p *servertest.Platform, w servertest.Workspace, f stagedFile) {
	t.Helper()
	if r := p.Do(t, ackRequest(w, f)); r.Status != http.StatusOK || strings.TrimSpace(string(r.Body)) != `{"acked":true}` {
		t.Fatalf("ack: %d %s", r.Status, r.Body)
	}
}

func ackedAt(t testing.TB, p *servertest.Platform, f stagedFile) (at string) {
	t.Helper()
	if err := p.DB.QueryRow("SELECT coalesce(acked_at::text, '') FROM pending_uploads WHERE file_id = $1", f.ID()).Scan(&at); err != nil {
		t.Fatal(err)
	}
	return at
}

// Planted: acked_at written by every ack.
func TestAck_IsIdempotentAndCountedOnce(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	f, other := stage(t, p, w, "one"), stage(t, p, w, "other")
	ack(t, p, w, f)
	first := ackedAt(t, p, f)
	admin := w
	admin.Token = servertest.AdminToken
	for _, who := range []servertest.Workspace{w, w, admin} {
		ack(t, p, who, f)
	}
	if again := ackedAt(t, p, f); first == "" || again != first {
		t.Errorf("acked at %q, then at %q", first, again)
	}
	if at := ackedAt(t, p, other); at != "" {
		t.Errorf("a file without an ack is acked at %q", at)
	}
}

func TestAck_ConcurrentAcksSucceedAndCountOnce(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	f := stage(t, p, w, "one")
	var acks sync.WaitGroup
	for range 16 {
		acks.Go(func() { do(t, p, fmt.Sprintf("ack-%p", new(int)), ackRequest(w, f)) })
	}
	acks.Wait()
	ack(t, p, w, f)
	if lines := p.Logs.Lines(t, "acked"); len(lines) != 1 {
		t.Errorf("%d acks counted, want 1", len(lines))
	}
}

// Acks and reads that race a sweep succeed or return 404; none is an internal error. Planted: an error other
// than ErrNotFound from the storage for a deleted row.
func TestAck_RacingDeleteIsNotAnInternalError(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	files := accepted(t, post(t, p, w, slices.Repeat([]part{file("f.bin", "", pattern(mib+1))}, 12)...))
	var racers sync.WaitGroup
	for _, f := range files {
		race := make(chan struct{})
		for _, request := range []servertest.Request{
			ackRequest(w, f), ackRequest(w, f), {Path: pendingPath(w, f, ""), Token: w.Token},
			{Path: pendingPath(w, f, "/content"), Token: w.Token, Header: http.Header{"Range": {"bytes=1048576-"}}},
		} {
			racers.Go(func() {
				<-race
				r := p.Do(t, request)
				if r.Status != http.StatusNotFound && r.Status != http.StatusOK && r.Status != http.StatusPartialContent {
					t.Errorf("%s %s: %d %s", request.Method, request.Path, r.Status, r.Body)
				}
			})
		}
		racers.Go(func() {
			<-race
			if _, err := p.DB.Exec("DELETE FROM pending_uploads WHERE file_id = $1", f.ID()); err != nil {
				t.Error(err)
			}
		})
		close(race)
	}
	racers.Wait()
	if lines := p.Logs.Lines(t, "failed"); len(lines) != 0 {
		t.Errorf("failures in the log: %v", lines)
	}
	if n := count(t, p, "pending_uploads"); n != 0 {
		t.Errorf("%d files are left", n)
	}
}
