package server_test

import (
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// send queues a message and returns its row.
func send(t testing.TB, p *servertest.Platform, w servertest.Workspace, token, method, message string) row {
	t.Helper()
	isJSON(t, call(t, p, "POST", "/workspaces/"+w.ID+"/a2a", token, message), http.StatusOK,
		`{"status":"queued","delivery_mode":"poll","method":"`+method+`"}`)
	return first(t, p, w, "?limit=1")
}

func TestA2A_PollQueuesTheMessage(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	const message = `{"jsonrpc":"2.0","id":1.50,"method":"message/send","params":{"message":{"role":"agent","messageId":"m1","parts":[{"kind":"text","text":"<&> \u0000é"}]},"z":1,"a":2}}`
	for name, token := range map[string]string{"": admin, w.ID: w.Token} {
		got := send(t, p, w, token, "message/send", message)
		source := ""
		if got.Source != nil {
			source = *got.Source
		}
		if got.Type != "a2a_receive" || source != name || got.Target == nil || *got.Target != w.ID || *got.Method != "message/send" ||
			*got.Status != "ok" || *got.Summary != "message/send" || string(got.Response) != "null" {
			t.Errorf("row %+v, want source %q", got, name)
		}
		if string(got.Request) != message {
			t.Errorf("body %s, want it as it was sent", got.Request)
		}
	}
}

func TestA2A_LegacyTypeIsStoredAsKind(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	wrap := func(parts string) string {
		return `{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"role":"user","messageId":"m1","parts":` + parts + `}}}`
	}
	for sent, stored := range map[string]string{
		`[{"type":"text","text":"a"},{"kind":"file","type":"x"},{"kind":"text"}]`: `[{"kind":"text","text":"a"},{"kind":"file","type":"x"},{"kind":"text"}]`,
		`[{"type":"data","data":{"type":"inner"}}]`:                               `[{"kind":"data","data":{"type":"inner"}}]`,
		`[]`:                 `[]`,
		`[1,null,"x"]`:       `[1,null,"x"]`,
		`{"type":"no list"}`: `{"type":"no list"}`,
	} {
		got := send(t, p, w, admin, "message/send", wrap(sent))
		var a, b any
		if json.Unmarshal(got.Request, &a) != nil || json.Unmarshal([]byte(wrap(stored)), &b) != nil || !reflect.DeepEqual(a, b) {
			t.Errorf("stored %s, want %s", got.Request, wrap(stored))
		}
	}
}

// What an agent reads is complete, however old the client. Planted: each of the fields left out; a value of the
// client's replaced.
func TestA2A_EnvelopeIsCompleted(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	type envelope struct {
		JSONRPC string `json:"jsonrpc"`
		ID      any
		Params  struct {
			Message map[string]any
		}
	}
	parts := []any{map[string]any{"kind": "text", "text": "a"}}
	for sent, want := range map[string]map[string]any{
		`{"parts":[{"type":"text","text":"a"}]}`:                  {"role": "user", "parts": parts},
		`{"content":[{"type":"text","text":"a"}],"role":"agent"}`: {"role": "agent", "parts": parts},
		`{"role":"","messageId":null,"content":"a"}`:              {"role": "user", "content": "a"},
		`{"parts":[{"kind":"text","text":"a"}],"content":[1]}`:    {"role": "user", "parts": parts, "content": []any{1.0}},
	} {
		for _, ids := range []string{"", `"id":7,"jsonrpc":"2.0",`} {
			var got envelope
			if err := json.Unmarshal(send(t, p, w, admin, "message/send", `{`+ids+`"method":"message/send","params":{"message":`+sent+`}}`).Request, &got); err != nil {
				t.Fatal(err)
			}
			messageID, _ := got.Params.Message["messageId"].(string)
			id, _ := got.ID.(string)
			if got.JSONRPC != "2.0" || uuid.Validate(messageID) != nil || ids == "" && uuid.Validate(id) != nil || ids != "" && got.ID != 7.0 {
				t.Errorf("%s: jsonrpc %q, id %v, messageId %q", sent, got.JSONRPC, got.ID, messageID)
			}
			delete(got.Params.Message, "messageId")
			if !reflect.DeepEqual(got.Params.Message, want) {
				t.Errorf("%s: %v, want %v", sent, got.Params.Message, want)
			}
		}
	}
}

func TestA2A_TakesAMiBAndNoMore(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	message := func(n int) string {
		const start, end = `{"jsonrpc":"2.0","id":1,"method":"message/send","params":"`, `"}`
		return start + strings.Repeat("x", n-len(start)-len(end)) + end
	}
	if got := send(t, p, w, admin, "message/send", message(mib)); len(got.Request) != mib {
		t.Errorf("%d bytes stored, want a MiB", len(got.Request))
	}
	long := func() io.Reader { return strings.NewReader(message(mib + 1)) }
	for name, body := range map[string]io.Reader{"length told": long(), "chunked": io.MultiReader(long())} {
		t.Log(name)
		isJSON(t, p.Do(t, servertest.Request{Method: "POST", Path: "/workspaces/" + w.ID + "/a2a", Token: admin, Body: body}),
			http.StatusRequestEntityTooLarge, `{"error":"request body exceeds limit","code":"request_too_large","max":1048576}`)
	}
	if rows := read(t, p, w, ""); len(rows) != 1 {
		t.Errorf("%d rows, want 1", len(rows))
	}
}

func TestA2A_RefusesWhatIsNoMessage(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	for body, code := range map[string]string{
		"": "invalid_json", "hello": "invalid_json", "[]": "invalid_json", "null": "invalid_json", `"method"`: "invalid_json", `{"method":"x"`: "invalid_json",
		`[{"method":"x"}]`: "invalid_json",
		`{}`:               "invalid_method", `{"method":""}`: "invalid_method", `{"method":null}`: "invalid_method", `{"method":7}`: "invalid_method",
		// Only an upload makes an upload's row. Planted: the name compared before it is stored without its NULs.
		`{"method":"chat_upload_receive"}`: "reserved_method", `{"method":"chat_upload\u0000_receive"}`: "invalid_method",
		`{"method":"m","params":` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + `}`: "invalid_json",
		`{"method":{"a":1}}`: "invalid_method", `{"Method":"x"}`: "invalid_method", `{"method":"` + strings.Repeat("x", 201) + `"}`: "invalid_method",
	} {
		isError(t, call(t, p, "POST", "/workspaces/"+w.ID+"/a2a", admin, body), http.StatusBadRequest, code, "")
	}
	if rows := read(t, p, w, ""); len(rows) != 0 {
		t.Errorf("%d rows, want none", len(rows))
	}
}

// Odd JSON that every client can read is stored.
func TestA2A_StoresOddBytes(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	for _, text := range []string{`\u0000`, `\ud83d\ude00`, "\U0001F600", `\"\\`, "\u2028"} {
		got := send(t, p, w, admin, "m", `{"method":"m","params":"`+text+`"}`)
		if !json.Valid(got.Request) {
			t.Errorf("%q: stored %q", text, got.Request)
		}
	}
	// As deep as it may be, with brackets that do not count.
	send(t, p, w, admin, "m", `{"method":"m","params":`+strings.Repeat("[", 499)+`"[[\"[["`+strings.Repeat("]", 499)+`}`)
}

// Messages that are being sent take memory from a budget; when it is used up others are asked
// to come back, and when it is given back they may.
func TestA2A_MemoryIsBounded(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.MaxJSONBytes = "8MiB" })
	w, other := p.Create(t, "poll", ""), p.Create(t, "poll", "")
	path, message := "/workspaces/"+w.ID+"/a2a", `{"method":"m","params":"`+strings.Repeat("x", mib-100)+`"}`
	var wg sync.WaitGroup
	finish := make(chan struct{})
	// hold sends a third of a message, and the rest when all is over.
	hold := func() {
		body, writer := io.Pipe()
		wg.Go(func() {
			r := p.Do(t, servertest.Request{Method: "POST", Path: path, Token: w.Token, Body: body})
			if r.Status != http.StatusOK && r.Status != http.StatusServiceUnavailable {
				t.Errorf("%d %s", r.Status, r.Body)
			}
		})
		wg.Go(func() {
			// Writing fails once there is an answer, which comes early to those without room.
			_, _ = io.WriteString(writer, message[:mib/3])
			<-finish
			_, _ = io.WriteString(writer, message[mib/3:])
			_ = writer.Close()
		})
	}
	for deadline := time.Now().Add(testTimeout); ; {
		hold()
		r := call(t, p, "POST", path, w.Token, message)
		if r.Status == http.StatusServiceUnavailable {
			isError(t, r, http.StatusServiceUnavailable, "saturated", "busy")
			if r.Header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			break
		}
		if time.Now().After(deadline) {
			close(finish)
			t.Fatal("never saturated")
		}
	}
	// Other workspaces have their share.
	must(t, p, http.StatusOK, "POST", "/registry/heartbeat", other.Token, `{"workspace_id":"`+other.ID+`"}`, nil)
	must(t, p, http.StatusOK, "POST", "/workspaces/"+other.ID+"/a2a", other.Token, message, nil)
	close(finish)
	wg.Wait()
	must(t, p, http.StatusOK, "POST", path, w.Token, message, nil)
}
