package server_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// A file's life and a message as the canvas sees them, and again from every point of it. Planted:
// no id with an event.
func TestEvents_EachOnceAndInOrderAndAgainFromEveryPoint(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	before := stage(t, p, w, "before")[0]
	begun := time.Now()
	s := listen(t, p, w.ID, admin, "")
	if n, err := strconv.Atoi(s.Retry); err != nil || n < 500 || n > 5000 || s.Start != "1-0" {
		t.Errorf("the stream begins with retry %s and id %s", s.Retry, s.Start)
	}
	files := stage(t, p, w, "a file.txt", "b")
	say(t, p, w, "message/send")
	fetch(t, p, w, files[0].ID())
	got := s.take(4)
	ack(t, p, w, files[0].ID())
	ack(t, p, w, files[0].ID())
	ack(t, p, w, before.ID())
	got = append(got, s.take(2)...)
	if took := time.Since(begun); took > 4500*time.Millisecond { // unannounced, they are seen 5 s after the stream's begin
		t.Errorf("it took %v: some events were not announced", took)
	}
	exec(t, p, `UPDATE pending_uploads SET expires_at = now() - interval '1 second' WHERE file_id = $1`, files[1].ID())
	exec(t, p, `DELETE FROM pending_uploads WHERE acked_at IS NULL`) // as the sweep does
	got = append(got, s.take(1)...)
	say(t, p, w, "last")
	got = append(got, s.take(1)...)
	const want = "staged a_file.txt, staged b, message message/send, fetched a_file.txt, acked a_file.txt, acked before, expired b, message last"
	if tell(got) != want {
		t.Fatalf("%s\nwant %s", tell(got), want)
	}
	rows := read(t, p, w, "?order=asc")
	for i, e := range got {
		isJSON(t, &servertest.Response{Status: 200, Body: []byte(e.Data)}, 200, wantEvent(e, files[0], rows, w))
		again := listen(t, p, w.ID, w.Token, e.ID)
		if again.Start != e.ID {
			t.Errorf("after %s the stream begins at %s", e.ID, again.Start)
		}
		if rest := again.take(len(got) - i - 1); tell(rest) != tell(got[i+1:]) || len(rest) > 0 && rest[len(rest)-1].ID != got[len(got)-1].ID {
			t.Errorf("after %s: %s, want %s", e.ID, tell(rest), tell(got[i+1:]))
		}
		again.close()
	}
	if all := listen(t, p, w.ID, admin, "0-0").take(len(got) + 1); all[0].Name != "before" {
		t.Errorf("from the very beginning: %s", tell(all))
	}
}

// wantEvent is what the event must be, to the letter where that is known.
func wantEvent(e event, file upload, rows []row, w servertest.Workspace) string {
	at := e.At.Format(time.RFC3339Nano)
	switch {
	case e.Kind == "message":
		r := rows[e.Seq-1]
		return fmt.Sprintf(`{"row_id":%q,"seq":%d,"method":%q,"source_id":%q,"at":%q}`, r.ID, r.Seq, *r.Method, w.ID, r.Created)
	case e.Kind == "staged" && e.Name == file.Name:
		return fmt.Sprintf(`{"file_id":%q,"name":%q,"size":%d,"state":"staged","at":%q,"row_id":%q,"seq":2}`, file.ID(), file.Name, file.Size, rows[1].Created, rows[1].ID)
	case e.Kind == "staged":
		return e.Data
	case e.Name == file.Name:
		return fmt.Sprintf(`{"file_id":%q,"name":%q,"size":%d,"state":%q,"at":%q}`, file.ID(), file.Name, file.Size, e.Kind, at)
	default:
		return fmt.Sprintf(`{"file_id":%q,"name":%q,"size":%d,"state":%q,"at":%q}`, e.FileID, e.Name, e.Size, e.Kind, at)
	}
}

// Readers that are cut off again and again, each time at another point, while files come and go
// through two replicas; one of which they are at, in turn.
func TestEvents_ReconnectsLoseAndRepeatNothing(t *testing.T) {
	t.Parallel()
	const writers, files, readers = 4, 25, 3
	a := servertest.Start(t)
	b := servertest.Start(t, func(s *config.Settings) { s.DatabaseURL = a.Config.DatabaseURL })
	w := a.Create(t, "poll", "")
	var writing, reading sync.WaitGroup
	for n := range writers {
		writing.Go(func() {
			replicas := []*servertest.Platform{a, b}
			for i := range files {
				p := replicas[(n+i)%2]
				f := stage(t, p, w, fmt.Sprintf("%d-%d", n, i))[0]
				fetch(t, replicas[i/2%2], w, f.ID())
				ack(t, replicas[i/4%2], w, f.ID())
			}
		})
	}
	for n := range readers {
		reading.Go(func() {
			last, states, kinds := "0-0", map[string]string{}, map[string]bool{}
			for seen, round := 0, n; seen < writers*files*3; round++ {
				s := listen(t, []*servertest.Platform{a, b}[round%2], w.ID, w.Token, last)
				for range min(1+round%7, writers*files*3-seen) {
					e := s.next()
					seen, last = seen+1, e.ID
					if order := "  staged fetched acked"; strings.Index(order, " "+e.State) < strings.Index(order, " "+states[e.Name]) {
						t.Errorf("reader %d: %s is %s after it was %q", n, e.Name, e.State, states[e.Name])
					}
					if states[e.Name] = e.State; kinds[e.Kind+e.Name] {
						t.Errorf("reader %d: %s came twice", n, e)
					}
					kinds[e.Kind+e.Name] = true
				}
				s.close()
			}
			if len(states) != writers*files {
				t.Errorf("reader %d: %d files, want %d", n, len(states), writers*files)
			}
		})
	}
	writing.Wait()
	reading.Wait()
}

func TestEvents_Refused(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.MaxStreams = "2" })
	w, other := p.Create(t, "poll", ""), p.Create(t, "poll", "")
	path := "/workspaces/" + w.ID + "/events/stream"
	ask := func(token, last string) *servertest.Response {
		r := servertest.Request{Path: path, Token: token, Header: http.Header{"Last-Event-Id": {last}}}
		if last == "" {
			r.Header = nil
		}
		return p.Do(t, r)
	}
	for _, bad := range []string{"x", "1", "1-", "01-0", "1-0-0", "-1-0", strings.Repeat("1", 60) + "-0"} {
		isError(t, ask(w.Token, bad), http.StatusBadRequest, "invalid_last_event_id", "Last-Event-ID")
	}
	for _, ahead := range []string{"1-0", "0-1"} {
		isError(t, ask(w.Token, ahead), http.StatusGone, "events_gone", "without it")
	}
	for _, token := range []string{"", other.Token, unknownToken} {
		isError(t, ask(token, ""), http.StatusUnauthorized, "unauthorized", "token")
	}
	isError(t, p.Do(t, servertest.Request{Path: "/workspaces/" + nobody + "/events/stream", Token: admin}), http.StatusNotFound, "workspace_not_found", "")
	first, second := listen(t, p, w.ID, w.Token, ""), listen(t, p, other.ID, other.Token, "")
	r := ask(w.Token, "")
	isError(t, r, http.StatusServiceUnavailable, "saturated", "retry")
	if r.Header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
	first.close()
	for begun := time.Now(); ask(w.Token, "").Status != http.StatusOK; time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > testTimeout {
			t.Fatal("a stream that was closed still counts")
		}
	}
	say(t, p, other, "still/there")
	if e := second.next(); e.Method != "still/there" {
		t.Errorf("event %s", e)
	}
}

// Streams end with the right to read them, on every replica, and before what comes after.
// Planted: no news of revoked tokens, or of removed workspaces.
func TestEvents_EndWithTheToken(t *testing.T) {
	t.Parallel()
	a, b, w := replicas(t)
	removed := a.Create(t, "poll", "")
	id, token := mint(t, a, w)
	var ending, staying []*eventStream
	for _, p := range []*servertest.Platform{a, b} {
		ending = append(ending, listen(t, p, w.ID, token, ""), listen(t, p, removed.ID, removed.Token, ""), listen(t, p, removed.ID, admin, ""))
		staying = append(staying, listen(t, p, w.ID, w.Token, ""), listen(t, p, w.ID, admin, ""))
	}
	must(t, a, http.StatusOK, http.MethodDelete, "/workspaces/"+w.ID+"/tokens/"+id, w.Token, "", nil)
	remove(t, a, removed)
	for i, s := range ending {
		if took := s.ended(); took > 3*time.Second {
			t.Errorf("stream %d ended after %v", i, took)
		}
	}
	say(t, a, w, "after")
	for _, s := range staying {
		if e := s.next(); e.Method != "after" {
			t.Errorf("event %s", e)
		}
	}
}
