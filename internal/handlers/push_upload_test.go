package handlers_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

// seen is a request as a receiver saw it.
type seen struct {
	method, path string
	header       http.Header
	length       int64
	encoding     []string
	body         string
	err          error // of reading the body
}

// receiver is a push workspace that records the requests it receives.
type receiver struct {
	*httptest.Server
	requests chan seen
}

// newReceiver answers every request with answer, or with a 200 if there is none.
func newReceiver(t testing.TB, answer ...http.HandlerFunc) *receiver {
	t.Helper()
	r := &receiver{requests: make(chan seen, 64)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		r.requests <- seen{q.Method, q.URL.RequestURI(), q.Header.Clone(), q.ContentLength, q.TransferEncoding, string(body), err}
		for _, f := range answer {
			f(w, q)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

// only returns the only request received.
func (r *receiver) only(t testing.TB) seen {
	t.Helper()
	if n := len(r.requests); n != 1 {
		t.Fatalf("receiver saw %d requests, want one", n)
	}
	return <-r.requests
}

// safe fails the test unless a relayed answer has the headers that make it harmless in a browser.
func safe(t testing.TB, header http.Header) {
	t.Helper()
	for name, want := range map[string]string{
		"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
	} {
		if got := header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// push uploads body with that Content-Type, and with headers that must not reach the receiver.
func push(t testing.TB, p *servertest.Platform, w servertest.Workspace, contentType string, body io.Reader) *servertest.Response {
	t.Helper()
	request := uploadRequest(w, body)
	request.Header = http.Header{
		"Content-Type": {contentType}, "Cookie": {"session=secret"}, "X-Request-Id": {"the-callers"}, "X-Forwarded-For": {"192.0.2.1"},
		"Origin": {"https://canvas.example"}, "Referer": {"https://canvas.example/"}, "X-Api-Key": {"secret"}, "Idempotency-Key": {"k"},
	}
	return p.Do(t, request)
}

// Planted: the caller's Authorization forwarded; Content-Type rewritten; Content-Length dropped; no secret;
// nosniff not sent.
func TestPush_ReceiverGetsTheUnchangedRequest(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	const odd = `multipart/form-data; BOUNDARY="odd (boundary)"; charset=UTF-8`
	bodies := map[string]string{
		"a form": form(file("dir/ünï.txt", "text/plain; charset=x", "content"), field("message", "hello")),
		"no form, which is the receiver's to judge": "--odd (boundary)\r\n\x00\xff not a form",
		"several pieces": pattern(3*mib + 17),
		"empty":          "",
	}
	for name, body := range bodies {
		for _, mode := range []string{"push", "legacy"} {
			for _, way := range []string{"length told", "chunked"} {
				t.Run(strings.Join([]string{name, mode, way}, ", "), func(t *testing.T) {
					t.Parallel()
					receiver := newReceiver(t)
					w := p.Create(t, "push", receiver.URL)
					if mode == "legacy" {
						exec(t, p, "UPDATE workspaces SET delivery_mode = NULL WHERE id = $1", w.ID)
					}
					var content io.Reader = strings.NewReader(body)
					length, encoding := int64(len(body)), []string(nil)
					if way == "chunked" {
						content, length, encoding = io.MultiReader(content), -1, []string{"chunked"}
					}
					if r := push(t, p, w, odd, content); r.Status != http.StatusOK {
						t.Fatalf("%d %s", r.Status, r.Body)
					}
					got := receiver.only(t)
					if got.method != http.MethodPost || got.path != "/internal/chat/uploads/ingest" {
						t.Errorf("called %s %s", got.method, got.path)
					}
					if got.body != body || got.err != nil {
						t.Errorf("body arrived as %d bytes (%v), want these %d", len(got.body), got.err, len(body))
					}
					if got.length != length || !slices.Equal(got.encoding, encoding) {
						t.Errorf("length %d, encoding %v; want %d, %v", got.length, got.encoding, length, encoding)
					}
					got.header.Del("Content-Length")
					want := http.Header{
						"Authorization": {"Bearer " + w.Secret}, "Content-Type": {odd}, "User-Agent": {"molecule-platform"},
						"X-Request-Id": {"the-callers"}, "Connection": {"close"},
					}
					if !reflect.DeepEqual(got.header, want) {
						t.Errorf("header is %v, want %v", got.header, want)
					}
				})
			}
		}
	}
}

func TestPush_AnswerIsRelayedWithSandboxHeaders(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	cases := []struct {
		status            int
		contentType, body string
	}{
		{http.StatusOK, "application/json", `{"files":[{"uri":"workspace:/x","name":"a"}]}`},
		{http.StatusCreated, "application/vnd.odd+json; charset=utf-8", `{ "kept" : "as it is" }`},
		{http.StatusNoContent, "", ""},
		{http.StatusBadRequest, "application/json", `{"error":"no files"}`},
		{http.StatusUnauthorized, "application/json", `{"error":"wrong secret"}`},
		{http.StatusRequestEntityTooLarge, "text/plain", "too much"},
		{http.StatusInternalServerError, "text/html", "<script>alert(1)</script>"},
		{http.StatusServiceUnavailable, "application/octet-stream", "\x00\xff"},
	}
	for _, c := range cases {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			t.Parallel()
			receiver := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Set-Cookie", "session=strangers")
				w.Header().Set("Access-Control-Allow-Origin", "*")
				if c.contentType != "" {
					w.Header().Set("Content-Type", c.contentType)
				}
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})
			r := post(t, p, p.Create(t, "push", receiver.URL), file("a", "", "a"))
			if r.Status != c.status || r.Header.Get("Content-Type") != c.contentType || string(r.Body) != c.body {
				t.Errorf("relayed as %d %q %q", r.Status, r.Header.Get("Content-Type"), r.Body)
			}
			for _, name := range []string{"Set-Cookie", "Access-Control-Allow-Origin"} {
				if got := r.Header.Get(name); got != "" {
					t.Errorf("the receiver's %s is relayed: %q", name, got)
				}
			}
			safe(t, r.Header)
		})
	}
}

func TestPush_AnswerWithoutATypeIsRelayedWithoutOne(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	receiver := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = nil
		_, _ = io.WriteString(w, "<html>")
	})
	r := post(t, p, p.Create(t, "push", receiver.URL), file("a", "", "a"))
	if got := r.Header.Get("Content-Type"); got != "" || string(r.Body) != "<html>" {
		t.Errorf("relayed as %q %q", got, r.Body)
	}
	safe(t, r.Header)
}

func TestPush_RedirectIsRelayedNotFollowed(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	elsewhere := newReceiver(t)
	receiver := newReceiver(t, func(w http.ResponseWriter, q *http.Request) {
		http.Redirect(w, q, elsewhere.URL, http.StatusTemporaryRedirect)
	})
	r := post(t, p, p.Create(t, "push", receiver.URL), file("a", "", "a"))
	if r.Status != http.StatusTemporaryRedirect || r.Header.Get("Location") != "" {
		t.Errorf("answered %d, Location %q", r.Status, r.Header.Get("Location"))
	}
	receiver.only(t)
	if n := len(elsewhere.requests); n != 0 {
		t.Errorf("the redirect was followed %d times", n)
	}
}

// Planted: the request completed with the received bytes when the caller disconnects.
func TestPush_TruncatedUploadIsNotACompleteRequest(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	for name, start := range map[string][2]string{
		"length":  {"Content-Length: 5000", ""},
		"chunked": {"Transfer-Encoding: chunked", "1388\r\n"},
	} {
		answered := make(chan struct{}, 1)
		receiver := newReceiver(t, func(http.ResponseWriter, *http.Request) { answered <- struct{}{} })
		c := dial(t, p.URL)
		c.send(t, uploadHeader(p.Create(t, "push", receiver.URL), start[0], "X-Request-ID: "+name)+start[1]+pattern(1000))
		_ = c.Close()
		finished(t, p, name)
		if line := logLine(t, p, "request cancelled by the client", name); line == nil {
			t.Errorf("%s: no line says that the client cancelled it", name)
		}
		select {
		case got := <-receiver.requests:
			if got.err == nil {
				t.Errorf("%s: receiver saw a complete request of %d bytes", name, len(got.body))
			}
			<-answered
		default: // cancelled before the receiver saw any of it
		}
	}
}
