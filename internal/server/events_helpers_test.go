package server_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

// event is one of a stream.
type event struct {
	Kind, ID string
	FileID   string    `json:"file_id"`
	Name     string    `json:"name"`
	Size     int64     `json:"size"`
	State    string    `json:"state"`
	RowID    string    `json:"row_id"`
	Seq      int64     `json:"seq"`
	Method   string    `json:"method"`
	Source   *string   `json:"source_id"`
	At       time.Time `json:"at"`
	Data     string    `json:"-"`
}

// String is kind and name, or method.
func (e event) String() string { return e.Kind + " " + e.Name + e.Method }

// eventStream is an open stream of events.
type eventStream struct {
	t      testing.TB
	answer *http.Response
	cancel context.CancelFunc
	Start  string     // the id that came before any event
	Retry  string     // what the client is told to wait
	events chan event // closed when the stream has ended
}

// listen opens a stream after the event with the id last, "" for now.
func listen(t testing.TB, p *servertest.Platform, workspace, token, last string) *eventStream {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+"/workspaces/"+workspace+"/events/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	if last != "" {
		request.Header.Set("Last-Event-ID", last)
	}
	answer, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK {
		cancel()
		t.Fatalf("stream: %d", answer.StatusCode)
	}
	s := &eventStream{t: t, answer: answer, cancel: cancel, events: make(chan event, 10_000)}
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() && lines.Text() != "" {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "id":
			s.Start = value
		case "retry":
			s.Retry = value
		}
	}
	go func() {
		defer close(s.events)
		var e event
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch {
			case lines.Text() == "" && e.Kind != "":
				s.events <- e
				e = event{}
			case name == "event":
				e.Kind = value
			case name == "id":
				e.ID = value
			case name == "data":
				if err := json.Unmarshal([]byte(value), &e); err != nil {
					e.Name = fmt.Sprintf("not JSON: %v", err)
				}
				e.Data = value
			}
		}
	}()
	t.Cleanup(s.close)
	return s
}

func (s *eventStream) close() {
	s.cancel()
	_ = s.answer.Body.Close()
}

// next returns the next event.
func (s *eventStream) next() event {
	s.t.Helper()
	select {
	case e, open := <-s.events:
		if !open {
			s.t.Fatal("the stream has ended")
		}
		return e
	case <-time.After(testTimeout):
		s.t.Fatal("no event came")
	}
	return event{}
}

// take returns n events.
func (s *eventStream) take(n int) []event {
	s.t.Helper()
	all := make([]event, n)
	for i := range all {
		all[i] = s.next()
	}
	return all
}

// ended waits until the platform has ended the stream, and returns how long that took.
func (s *eventStream) ended() time.Duration {
	s.t.Helper()
	start, over := time.Now(), time.After(testTimeout)
	for {
		select {
		case _, open := <-s.events:
			if !open {
				return time.Since(start)
			}
		case <-over:
			s.t.Fatal("the stream goes on")
		}
	}
}

// tell says which events there are, in their order.
func tell(events []event) string {
	all := make([]string, len(events))
	for i, e := range events {
		all[i] = e.String()
	}
	return strings.Join(all, ", ")
}

// fetch reads a file to its end.
func fetch(t testing.TB, p *servertest.Platform, w servertest.Workspace, id string) {
	t.Helper()
	must(t, p, http.StatusOK, http.MethodGet, "/workspaces/"+w.ID+"/pending-uploads/"+id+"/content", w.Token, "", nil)
}

// ack acknowledges a file.
func ack(t testing.TB, p *servertest.Platform, w servertest.Workspace, id string) {
	t.Helper()
	must(t, p, http.StatusOK, http.MethodPost, "/workspaces/"+w.ID+"/pending-uploads/"+id+"/ack", w.Token, "", nil)
}

// say sends a message.
func say(t testing.TB, p *servertest.Platform, w servertest.Workspace, method string) {
	t.Helper()
	must(t, p, http.StatusOK, http.MethodPost, "/workspaces/"+w.ID+"/a2a", w.Token, `{"jsonrpc":"2.0","id":1,"method":"`+method+`"}`, nil)
}
