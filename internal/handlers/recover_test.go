package handlers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/gin-gonic/gin"
)

// panicking serves a route that runs f, behind the middleware of every request.
func panicking(t *testing.T, f gin.HandlerFunc) (url string, log *safeBuffer) {
	t.Helper()
	log = &safeBuffer{}
	e := gin.New()
	e.Use(Log(slog.New(slog.NewJSONHandler(log, nil))), Recover())
	e.GET("/", f)
	s := httptest.NewUnstartedServer(e)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Start()
	t.Cleanup(s.Close)
	return s.URL, log
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func get(t *testing.T, url string) (*http.Response, []byte, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return answer, body, err
}

func TestRecover_AnswersJSONAndLogsTheStack(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]gin.HandlerFunc{
		"value": func(*gin.Context) { panic("secret cause") },
		"error": func(*gin.Context) { panic(errors.New("secret cause")) },
		"runtime": func(c *gin.Context) {
			_ = []string{"secret cause"}[len(c.Params)+1]
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, log := panicking(t, f)
			answer, body, err := get(t, url)
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]string
			if err := json.Unmarshal(body, &got); err != nil || answer.StatusCode != http.StatusInternalServerError || len(got) != 2 || got["code"] != "internal" ||
				strings.Contains(string(body), "secret") {
				t.Errorf("%d %s", answer.StatusCode, body)
			}
			id := answer.Header.Get("X-Request-ID")
			if logged := log.String(); !strings.Contains(logged, "recover_test.go") || !strings.Contains(logged, id) || id == "" {
				t.Errorf("log has no stack or no request id %q: %s", id, logged)
			}
		})
	}
}

// Nothing may be added to an answer that has begun: an error must not end up in a file's bytes.
func TestRecover_DoesNotAddToAnAnswer(t *testing.T) {
	t.Parallel()
	url, log := panicking(t, func(c *gin.Context) {
		c.String(http.StatusOK, "begun")
		panic("too late")
	})
	if _, body, err := get(t, url); err != nil || string(body) != "begun" {
		t.Errorf("%q %v", body, err)
	}
	if !strings.Contains(log.String(), "too late") {
		t.Error("not logged")
	}
}

// A handler closes the connection with http.ErrAbortHandler, which must reach net/http.
func TestRecover_LetsAbortThrough(t *testing.T) {
	t.Parallel()
	url, _ := panicking(t, func(*gin.Context) { panic(http.ErrAbortHandler) })
	if answer, _, err := get(t, url); err == nil {
		t.Errorf("answered with %d, want a broken connection", answer.StatusCode)
	}
}

func TestRender_DistinguishesADisconnectedClientFromAFault(t *testing.T) {
	t.Parallel()
	var log safeBuffer
	c, _ := gin.CreateTestContext(httptest.NewRecorder())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.Request = httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	c.Set(loggerKey, slog.New(slog.NewJSONHandler(&log, nil)))
	Render(c, ctx.Err())
	if !strings.Contains(log.String(), `"level":"INFO","msg":"request cancelled by the client"`) {
		t.Errorf("logged %s", log.String())
	}
}
