// Package servertest starts a whole platform inside a test: the real router and handlers, on a
// real PostgreSQL, behind a real socket. The test binary must run under pgtest.Main.
//
// Every answer that a test gets through Do is checked against the OpenAPI file.
package servertest

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/server"
)

// AdminToken is the operator's token of every platform started here.
const AdminToken = "admin-token-of-a-test-which-is-long-enough"

const stopTimeout = 40 * time.Second

// Platform is a running platform.
type Platform struct {
	URL    string // http://127.0.0.1:port
	Config config.Config
	DB     *sql.DB // the platform's database, for looking behind the wire
	Logs   *Logs
}

// Start starts a platform on a database of its own, migrated to the newest schema, and
// stops it when the test ends. change may alter its settings; DatabaseURL among them.
// Push workspaces on loopback may be called.
func Start(t testing.TB, change ...func(*config.Settings)) *Platform {
	t.Helper()
	settings := Settings(t)
	for _, f := range change {
		f(&settings)
	}
	if settings.DatabaseURL == "" {
		settings.DatabaseURL = pgtest.New(t)
	}
	c, err := settings.Load()
	if err != nil {
		t.Fatalf("configuration: %v", err)
	}
	logs := &Logs{}
	s, err := server.New(t.Context(), c, slog.New(slog.NewJSONHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatalf("start platform: %v", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("platform: %v", err)
			}
		case <-time.After(stopTimeout):
			t.Error("platform did not stop")
		}
		if t.Failed() {
			t.Logf("the platform's log:\n%s", logs)
		}
	})
	return &Platform{URL: "http://" + s.Addr(), Config: c, DB: pgtest.Open(t, settings.DatabaseURL), Logs: logs}
}

// Settings are the defaults with what a test needs: any free port, the test's admin token,
// push allowed to loopback, registration open.
func Settings(t testing.TB) config.Settings {
	t.Helper()
	var s config.Settings
	parser, err := kong.New(&s)
	if err == nil {
		_, err = parser.Parse(nil)
	}
	if err != nil {
		t.Fatalf("default settings: %v", err)
	}
	s.Addr, s.AdminToken, s.PushAllowCIDRs, s.Registration = "127.0.0.1:0", AdminToken, "127.0.0.0/8,::1/128", "open"
	s.DatabaseURL, s.SpoolDir = "", t.TempDir()
	return s
}

// A Workspace is one that a test made.
type Workspace struct {
	ID     string
	Token  string
	Secret string // its platform_inbound_secret
}

// Create makes a workspace through the API. url may be "".
func (p *Platform) Create(t testing.TB, mode, url string) Workspace {
	t.Helper()
	body, _ := json.Marshal(map[string]string{"name": t.Name()[:min(len(t.Name()), 200)], "delivery_mode": mode, "url": url})
	r := p.Do(t, Request{Method: http.MethodPost, Path: "/workspaces", Token: AdminToken, Body: bytes.NewReader(body)})
	if r.Status != http.StatusCreated {
		t.Fatalf("create workspace: %d %s", r.Status, r.Body)
	}
	var made struct {
		ID     string `json:"id"`
		Token  string `json:"auth_token"`
		Secret string `json:"platform_inbound_secret"`
	}
	r.JSON(t, &made)
	return Workspace(made)
}

// Request is a call to a platform.
type Request struct {
	Method string // "" is GET
	Path   string // with query
	Token  string // bearer; "" sends none
	Header http.Header
	Body   io.Reader
}

// Response is the answer, read to its end.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

// JSON reads the body into v.
func (r *Response) JSON(t testing.TB, v any) {
	t.Helper()
	if err := json.Unmarshal(r.Body, v); err != nil {
		t.Fatalf("%d %s: %v", r.Status, r.Body, err)
	}
}

// Do calls the platform and checks the answer against the OpenAPI file.
func (p *Platform) Do(t testing.TB, r Request) *Response {
	t.Helper()
	return p.do(t, r, http.DefaultClient.Do)
}

// DoOnce is Do, but it follows no redirect.
func (p *Platform) DoOnce(t testing.TB, r Request) *Response {
	t.Helper()
	return p.do(t, r, http.DefaultTransport.RoundTrip)
}

func (p *Platform) do(t testing.TB, r Request, send func(*http.Request) (*http.Response, error)) *Response {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), r.Method, p.URL+r.Path, r.Body)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range r.Header {
		request.Header[name] = values
	}
	if r.Token != "" {
		request.Header.Set("Authorization", "Bearer "+r.Token)
	}
	answer, err := send(request)
	if err != nil {
		t.Fatalf("%s %s: %v", r.Method, r.Path, err)
	}
	defer answer.Body.Close()
	body, err := readBody(answer)
	if err != nil {
		t.Fatalf("%s %s: read answer: %v", r.Method, r.Path, err)
	}
	checkAnswer(t, request, answer, body)
	return &Response{Status: answer.StatusCode, Header: answer.Header, Body: body}
}

// readBody reads the answer to its end; of a stream of events, which has none, what comes before
// the first empty line.
func readBody(answer *http.Response) ([]byte, error) {
	if answer.Header.Get("Content-Type") != "text/event-stream" {
		return io.ReadAll(answer.Body)
	}
	var all []byte
	r := bufio.NewReader(answer.Body)
	for {
		line, err := r.ReadBytes('\n')
		if all = append(all, line...); err != nil || len(line) == 1 {
			return all, err
		}
	}
}

// Logs collects log lines.
type Logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *Logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns all lines so far.
func (l *Logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Lines returns the lines with that message.
func (l *Logs) Lines(t testing.TB, message string) []map[string]any {
	t.Helper()
	var found []map[string]any
	for line := range strings.Lines(l.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("log line is not JSON: %q: %v", line, err)
		}
		if fields["msg"] == message {
			found = append(found, fields)
		}
	}
	return found
}
