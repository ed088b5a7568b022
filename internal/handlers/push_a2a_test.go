package handlers_test

import (
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

const question = `{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"role":"user","messageId":"m1","parts":[{"kind":"text","text":"<hi> \u0000"}]}}}`

// ask sends question to w, as the canvas does.
func ask(t testing.TB, p *servertest.Platform, w servertest.Workspace) *servertest.Response {
	t.Helper()
	return p.Do(t, servertest.Request{
		Method: http.MethodPost, Path: "/workspaces/" + w.ID + "/a2a", Token: servertest.AdminToken,
		Header: http.Header{"Content-Type": {"application/json"}, "Cookie": {"session=secret"}, "X-Request-Id": {"asked"}},
		Body:   strings.NewReader(question),
	})
}

// recorded returns the only inbox row of w, without the fields that differ between runs, which it checks.
func recorded(t testing.TB, p *servertest.Platform, w servertest.Workspace) (row map[string]any, ms float64) {
	t.Helper()
	var rows []map[string]any
	p.Do(t, servertest.Request{Path: "/workspaces/" + w.ID + "/activity", Token: w.Token}).JSON(t, &rows)
	if len(rows) != 1 {
		t.Fatalf("%d inbox rows, want 1", len(rows))
	}
	row = rows[0]
	ms, timed := row["duration_ms"].(float64)
	if !timed || ms < 0 {
		t.Errorf("duration_ms is %v", row["duration_ms"])
	}
	for _, name := range []string{"id", "seq", "created_at", "duration_ms"} {
		delete(row, name)
	}
	return row, ms
}

func TestPushMessage_AnswerIsRelayedAndTheCallRecorded(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	var request any
	(&servertest.Response{Body: []byte(question)}).JSON(t, &request)
	cases := []struct {
		name              string
		status            int
		contentType, body string
		rowStatus         string
		detail, stored    any
	}{
		{"an answer", 200, "application/json", `{"jsonrpc":"2.0","id":1,"result":{"n":[1,2]}}`, "ok", nil, map[string]any{"jsonrpc": "2.0", "id": 1.0, "result": map[string]any{"n": []any{1.0, 2.0}}}},
		{"no JSON", 200, "text/html", "<b>hi</b>", "ok", nil, "<b>hi</b>"},
		{"nothing", 202, "", "", "ok", nil, nil},
		{"a failure", 500, "application/json", `{"error":"broken"}`, "error", "workspace answered 500", map[string]any{"error": "broken"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			receiver := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Content-Type"] = nil
				if c.contentType != "" {
					w.Header().Set("Content-Type", c.contentType)
				}
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})
			w := p.Create(t, "push", receiver.URL+"/agent?x=1")
			r := ask(t, p, w)
			if r.Status != c.status || r.Header.Get("Content-Type") != c.contentType || string(r.Body) != c.body {
				t.Errorf("relayed as %d %q %q", r.Status, r.Header.Get("Content-Type"), r.Body)
			}
			safe(t, r.Header)

			got := receiver.only(t)
			if got.method != http.MethodPost || got.path != "/agent?x=1" || got.body != question || got.length != int64(len(question)) {
				t.Errorf("receiver saw %s %s with %d bytes: %s", got.method, got.path, got.length, got.body)
			}
			got.header.Del("Content-Length")
			want := http.Header{
				"Content-Type": {"application/json"}, "User-Agent": {"molecule-platform"}, "X-Request-Id": {"asked"}, "Connection": {"close"},
			}
			if !reflect.DeepEqual(got.header, want) {
				t.Errorf("header is %v, want %v", got.header, want)
			}

			row, _ := recorded(t, p, w)
			wantRow := map[string]any{
				"workspace_id": w.ID, "activity_type": "a2a_receive", "method": "message/send", "summary": "message/send", "source_id": nil,
				"target_id": w.ID, "request_body": request, "response_body": c.stored, "status": c.rowStatus, "error_detail": c.detail,
			}
			if !reflect.DeepEqual(row, wantRow) {
				t.Errorf("recorded as %v, want %v", row, wantRow)
			}
		})
	}
}

// Planted: only answered calls recorded.
func TestPushMessage_FailedCallIsRecorded(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "push", nobody)
	answered(t, ask(t, p, w), http.StatusBadGateway, unreachable)
	row, _ := recorded(t, p, w)
	for name, want := range map[string]any{"status": "error", "error_detail": "workspace unreachable", "response_body": nil, "method": "message/send"} {
		if row[name] != want {
			t.Errorf("%s is %v, want %v", name, row[name], want)
		}
	}
	if row["request_body"] == nil {
		t.Error("the message that was not delivered is not recorded")
	}
}

func TestPushMessage_WorkspaceThatCannotBeCalled(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "push", "")
	answered(t, ask(t, p, w), http.StatusServiceUnavailable, map[string]any{"error": "workspace url not registered yet", "code": "url_not_registered"})
	exec(t, p, "UPDATE workspaces SET delivery_mode = NULL WHERE id = $1", w.ID)
	wantNoCallbackURL(t, ask(t, p, w))
	if n := count(t, p, "activity_logs"); n != 0 {
		t.Errorf("%d calls recorded that were not made", n)
	}
}

// A push workspace gets what is stored, which is what a poller would get. Planted: the body as it was sent.
func TestPushMessage_NormalisedEnvelopeIsForwardedAndRecorded(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	receiver := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	w := p.Create(t, "push", receiver.URL)
	p.Do(t, servertest.Request{Method: http.MethodPost, Path: "/workspaces/" + w.ID + "/a2a", Token: w.Token,
		Body: strings.NewReader(`{"method":"message/send","params":{"message":{"content":[{"type":"text","text":"<a>"}]}}}`)})
	row, _ := recorded(t, p, w)
	var forwarded any
	(&servertest.Response{Body: []byte(receiver.only(t).body)}).JSON(t, &forwarded)
	if !reflect.DeepEqual(forwarded, row["request_body"]) {
		t.Errorf("forwarded %v, recorded %v", forwarded, row["request_body"])
	}
	message := forwarded.(map[string]any)["params"].(map[string]any)["message"].(map[string]any)
	if parts := []any{map[string]any{"kind": "text", "text": "<a>"}}; !reflect.DeepEqual(message["parts"], parts) || message["role"] != "user" {
		t.Errorf("forwarded %v", message)
	}
}
