package handlers_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

// do is Do with a request id.
func do(t testing.TB, p *servertest.Platform, id string, r servertest.Request) *servertest.Response {
	t.Helper()
	if r.Header == nil {
		r.Header = http.Header{}
	}
	r.Header.Set("X-Request-Id", id)
	answer := p.Do(t, r)
	if got := answer.Header.Get("X-Request-Id"); got != id {
		t.Errorf("answer carries request id %q, want %q", got, id)
	}
	finished(t, p, id)
	return answer
}

// Planted: each of the lines missing; the original name instead of the sanitized one.
func TestLog_EveryChangeOfAFileIsOneLine(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, smallCaps)
	w := p.Create(t, "poll", "")
	const content = "the-content-of-the-file"
	f := accepted(t, do(t, p, "upload", uploadRequest(w, strings.NewReader(form(file("my notes.txt", "", content))))))[0]
	do(t, p, "fetch", servertest.Request{Path: pendingPath(w, f, "/content"), Token: w.Token})
	do(t, p, "fetch-again", servertest.Request{Path: pendingPath(w, f, "/content"), Token: w.Token})
	do(t, p, "ack", servertest.Request{Method: http.MethodPost, Path: pendingPath(w, f, "/ack"), Token: w.Token})
	do(t, p, "ack-again", servertest.Request{Method: http.MethodPost, Path: pendingPath(w, f, "/ack"), Token: w.Token})
	do(t, p, "too-large", uploadRequest(w, strings.NewReader(form(file("too large.bin", "", pattern(mib+1))))))

	for message, want := range map[string]map[string]any{
		"staged":  {"request_id": "upload", "file_id": f.ID(), "size": 23.0, "filename": "my_notes.txt"},
		"fetched": {"request_id": "fetch", "file_id": f.ID(), "size": 23.0, "filename": "my_notes.txt"},
		"acked":   {"request_id": "ack", "file_id": f.ID(), "size": 23.0, "filename": "my_notes.txt"},
		"refused": {"request_id": "too-large", "status": 413.0, "code": "file_too_large", "filename": "too_large.bin"},
	} {
		lines := p.Logs.Lines(t, message)
		if len(lines) != 1 {
			t.Errorf("%d lines say %q, want 1", len(lines), message)
			continue
		}
		want["workspace_id"], want["caller"] = w.ID, "workspace"
		for name, value := range want {
			if lines[0][name] != value {
				t.Errorf("%s: %s is %v, want %v", message, name, lines[0][name], value)
			}
		}
	}
	if all := p.Logs.String(); strings.Contains(all, content) || strings.Contains(all, w.Token) || strings.Contains(all, "my notes") {
		t.Error("the log has a content, a token or a name as the client wrote it")
	}
}
