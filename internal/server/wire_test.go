package server_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// A parameter that is silently dropped is a lost cursor. Planted: the check left out.
func TestWire_QueryThatCannotBeParsed(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	for _, path := range []string{"/activity?since_id=%zz", "/activity?limit=1;since_id=" + nobody, "/pending-uploads?after=%", "/activity?a=1&%f"} {
		isError(t, call(t, p, "GET", "/workspaces/"+w.ID+path, w.Token, ""), http.StatusBadRequest, "invalid_query", "query string")
	}
	if rows := read(t, p, w, "?type=%61&+=%2B&x"); len(rows) != 0 {
		t.Errorf("%d rows", len(rows))
	}
}

// Planted: the check left out; any Content-Encoding refused.
func TestWire_EncodedBody(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	post := func(path, encoding string) *servertest.Response {
		return p.Do(t, servertest.Request{Method: "POST", Path: "/workspaces/" + w.ID + path, Token: w.Token,
			Header: http.Header{"Content-Encoding": {encoding}}, Body: strings.NewReader(`{"method":"m"}`)})
	}
	for _, encoding := range []string{"gzip", "identity, gzip", "BR", "x"} {
		for _, path := range []string{"/a2a", "/chat/uploads"} {
			isError(t, post(path, encoding), http.StatusUnsupportedMediaType, "unsupported_encoding", "Content-Encoding")
		}
	}
	for _, encoding := range []string{"identity", "Identity", ""} {
		if r := post("/a2a", encoding); r.Status != http.StatusOK {
			t.Errorf("%q: %d %s", encoding, r.Status, r.Body)
		}
	}
}

// Two parties that each read another one would disagree on who is calling.
func TestWire_TwoAuthorizationHeaders(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	r := p.Do(t, servertest.Request{Path: "/workspaces/" + w.ID, Header: http.Header{"Authorization": {"Bearer " + w.Token, "Bearer " + w.Token}}})
	isError(t, r, http.StatusBadRequest, "ambiguous_authorization", "one Authorization")
}

// Answers hold tokens and messages. Planted: the headers left out of successes, and of errors.
func TestWire_NoAnswerIsCachedOrSniffed(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	for _, r := range []*servertest.Response{
		call(t, p, "GET", "/health", "", ""), call(t, p, "GET", "/uploads/limits", "", ""), call(t, p, "GET", "/nothing", "", ""),
		call(t, p, "PUT", "/health", "", ""), call(t, p, "GET", "/workspaces", admin, ""), call(t, p, "POST", "/workspaces/"+w.ID+"/tokens", w.Token, ""),
		call(t, p, "GET", "/workspaces/"+w.ID, "", ""), call(t, p, "GET", "/workspaces/"+w.ID+"/activity", w.Token, ""),
		call(t, p, "GET", "/workspaces/"+w.ID+"/pending-uploads/"+nobody+"/content", w.Token, ""),
	} {
		if r.Header.Get("Cache-Control") != "no-store" || r.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%d %s: %v", r.Status, r.Body, r.Header)
		}
	}
}

// A status that HTTP does not have breaks proxies and clients. Planted: 700 relayed.
func TestWire_RelayedStatusIsOneOfHTTP(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.PushAllowCIDRs = "127.0.0.0/8" })
	for status, relayed := range map[string]int{"200": 200, "599": 599, "600": 502, "999": 502} {
		agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 "+status+" Odd\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
		}))
		t.Cleanup(agent.Close)
		w := p.Create(t, "push", agent.URL)
		if r := call(t, p, "POST", "/workspaces/"+w.ID+"/a2a", w.Token, `{"method":"m"}`); r.Status != relayed {
			t.Errorf("%s relayed as %d", status, r.Status)
		}
	}
}

// Some proxies write the port, and some a line of their own. Planted: ports left to gin.
func TestWire_ForwardedForAsProxiesWriteIt(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.TrustedProxies = "127.0.0.0/8" })
	for id, lines := range map[string][]string{
		"192.0.2.1":   {"203.0.113.9, 192.0.2.1:4711"},
		"2001:db8::1": {"[2001:db8::1]:4711"},
		"2001:db8::2": {"[2001:db8::2]"},
		"192.0.2.4":   {"203.0.113.9", "192.0.2.4"},
		"192.0.2.5":   {"192.0.2.5, 127.0.0.9:80"},
	} {
		p.Do(t, servertest.Request{Path: "/health", Header: http.Header{"X-Forwarded-For": lines, "X-Request-Id": {id}}})
		found := false
		for _, line := range p.Logs.Lines(t, "request") {
			if line["request_id"] == id {
				if found = true; line["client_ip"] != id {
					t.Errorf("%q: client_ip %v", lines, line["client_ip"])
				}
			}
		}
		if !found {
			t.Errorf("%q: no log line", lines)
		}
	}
}
