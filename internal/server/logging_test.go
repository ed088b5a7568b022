package server_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

// lines returns the platform's log, each line of which must be a JSON object.
func lines(t testing.TB, p *servertest.Platform) []map[string]any {
	t.Helper()
	var all []map[string]any
	for line := range strings.Lines(p.Logs.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("log line is not JSON: %q: %v", line, err)
		}
		all = append(all, fields)
	}
	return all
}

func TestRequestID_SaneIsEchoedInsaneIsReplaced(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	for id, sane := range map[string]bool{
		"a": true, "7": true, "trace-1/span.2:3+4=@_": true, strings.Repeat("x", 128): true, uuid.NewString(): true,
		"": false, strings.Repeat("x", 129): false, "a b": false, "a\tb": false, `a"b`: false, "a,b": false, "a{b}": false, "<script>": false,
		"é": false, "a\xffb": false, `a\nb`: false, "%0d%0a": false,
	} {
		r := p.Do(t, servertest.Request{Path: "/health", Header: http.Header{"X-Request-Id": {id}}})
		got := r.Header.Values("X-Request-Id")
		if len(got) != 1 || sane && got[0] != id || !sane && uuid.Validate(got[0]) != nil {
			t.Errorf("%q: answered %q", id, got)
		}
	}
}

// messagesOf returns what was logged of a request, in one string. Its last line is written
// after its answer, so this waits for it.
func messagesOf(t testing.TB, p *servertest.Platform, id string) string {
	t.Helper()
	for deadline := time.Now().Add(testTimeout); ; {
		var messages []string
		for _, line := range lines(t, p) {
			if line["request_id"] == id {
				messages = append(messages, line["msg"].(string))
			}
		}
		if n := len(messages); n > 0 && messages[n-1] == "request" {
			return strings.Join(messages, " ")
		}
		if time.Now().After(deadline) {
			t.Fatalf("request %s: no last line after %q", id, messages)
		}
	}
}

// The id is in the answer and in each line that the request causes, whatever becomes of it.
func TestRequestID_IsInEveryLineOfTheRequest(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	file := stage(t, p, w, "a.txt")[0].ID()
	path := "/workspaces/" + w.ID
	for id, request := range map[string]struct {
		servertest.Request
		messages string // that carry the id
	}{
		"fetch":    {servertest.Request{Path: path + "/pending-uploads/" + file + "/content", Token: w.Token}, "fetched request"},
		"ack":      {servertest.Request{Method: "POST", Path: path + "/pending-uploads/" + file + "/ack", Token: w.Token}, "acked request"},
		"message":  {servertest.Request{Method: "POST", Path: path + "/a2a", Token: admin, Body: strings.NewReader(`{"method":"x"}`)}, "message queued request"},
		"refused":  {servertest.Request{Path: path, Token: "wrong"}, "refused request"},
		"not":      {servertest.Request{Path: "/nowhere"}, "refused request"},
		"register": {servertest.Request{Method: "POST", Path: "/registry/register", Token: w.Token, Body: strings.NewReader(registration(w.ID, ""))}, "registered request"},
		"mint":     {servertest.Request{Method: "POST", Path: path + "/tokens", Token: w.Token}, "token minted request"},
	} {
		request.Header = http.Header{"X-Request-Id": {id}}
		if got := p.Do(t, request.Request).Header.Get("X-Request-Id"); got != id {
			t.Errorf("%s: answered with %s", id, got)
		}
		if got := messagesOf(t, p, id); got != request.messages {
			t.Errorf("%s: lines %q, want %q", id, got, request.messages)
		}
	}
	for _, line := range lines(t, p) {
		if line["request_id"] == nil && line["msg"] != "serving" {
			t.Errorf("line of a request without its id: %v", line)
		}
	}
}

func TestLog_HasNoSecrets(t *testing.T) {
	t.Parallel()
	s := setScene(t)
	secrets := []string{admin, unknownToken, "content-of-a-file", "text-of-a-message"}
	for _, w := range []servertest.Workspace{s.own, s.other, s.removed} {
		secrets = append(secrets, w.Token, w.Secret)
	}
	secrets = append(secrets, s.revoked)
	for _, route := range routes(t) {
		for _, token := range []string{s.own.Token, unknownToken, s.revoked, s.other.Token} {
			s.Do(t, s.request(route.Method, route.Path, s.own, "Bearer "+token))
		}
	}
	fresh := registerAs(t, s.Platform, uuid.NewString(), "", `,"delivery_mode":"poll"`)
	_, minted := mint(t, s.Platform, s.own)
	secrets = append(secrets, fresh.Token, fresh.Secret, minted)
	stage(t, s.Platform, s.own, "content-of-a-file-is-its-name")
	send(t, s.Platform, s.own, admin, "message/send", `{"method":"message/send","params":"text-of-a-message"}`)
	call(t, s.Platform, "GET", "/workspaces/"+s.own.ID+"/activity?access_token="+s.own.Token, "", "")
	call(t, s.Platform, "GET", "/nowhere/"+s.own.Token, "", "")
	exec(t, s.Platform, `ALTER TABLE workspace_tokens RENAME TO hidden`)
	call(t, s.Platform, "GET", "/workspaces/"+s.own.ID, s.own.Token, "")

	logged := strings.ReplaceAll(s.Logs.String(), "content-of-a-file-is-its-name", "") // a name is no secret
	for _, secret := range secrets {
		if secret == "" || strings.Contains(logged, secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
	if len(lines(t, s.Platform)) < 50 {
		t.Error("hardly anything was logged")
	}
}

// What a client chooses cannot end a line, start another, or pass for a field.
func TestLog_CannotBeForged(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	const forged = "\n{\"msg\":\"forged\"}\r\n\",\"forged\":\"\x1b[2J\u2028"
	upload := "--b\r\nContent-Disposition: form-data; name=\"files\"; filename*=UTF-8''%0A%7B%22msg%22%3A%22forged%22%7D%0D\r\n\r\nx\r\n--b--\r\n"
	r := p.Do(t, servertest.Request{Method: "POST", Path: "/workspaces/" + w.ID + "/chat/uploads", Token: w.Token,
		Header: http.Header{"Content-Type": {"multipart/form-data; boundary=b"}, "X-Request-Id": {`1","forged":"1`}}, Body: strings.NewReader(upload)})
	if r.Status != http.StatusOK {
		t.Fatalf("upload: %d %s", r.Status, r.Body)
	}
	quoted, err := json.Marshal(forged)
	if err != nil {
		t.Fatal(err)
	}
	must(t, p, http.StatusBadRequest, "POST", "/workspaces/"+w.ID+"/a2a", w.Token, `{"method":`+string(quoted)+`}`, nil)
	must(t, p, http.StatusOK, "POST", "/workspaces/"+w.ID+"/a2a", w.Token, `{"method":"\",\"forged\":\"\u2028"}`, nil)
	must(t, p, http.StatusCreated, "POST", "/workspaces", admin, `{"name":`+string(quoted)+`}`, nil)
	call(t, p, "GET", "/%0A%7B%22msg%22:%22forged%22%7D?a=%0A", "", "")
	call(t, p, "GET", "/workspaces/%0A%7B%22msg%22:%22forged%22%7D", admin, "")
	for _, line := range lines(t, p) {
		if line["msg"] == "forged" || line["forged"] != nil {
			t.Errorf("forged: %v", line)
		}
	}
	if strings.ContainsAny(p.Logs.String(), "\x1b\r\u2028") {
		t.Error("a control character is in the log as it is")
	}
}
