package handlers_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/molecule-ai/platform/internal/handlers"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// shortWindow makes the tests of slow clients fast; tests of fast clients use longer windows.
const shortWindow = 200 * time.Millisecond

var bodyTooSlow = map[string]any{
	"error": "request body arrived too slowly; try again on a better connection", "code": "body_too_slow",
}

// boundedServer serves handler on / behind BoundBody.
func boundedServer(t testing.TB, window time.Duration, handler handlers.Handler) (url string, logs *servertest.Logs) {
	t.Helper()
	logs = &servertest.Logs{}
	e := gin.New()
	e.Use(handlers.Log(slog.New(slog.NewJSONHandler(logs, nil))), handlers.Recover(), handlers.BoundBody(window))
	e.POST("/", handlers.Wrap(handler))
	server := httptest.NewServer(e)
	t.Cleanup(server.Close)
	return server.URL, logs
}

// readAll answers with the length of the body.
func readAll(c *gin.Context) error {
	n, err := io.Copy(io.Discard, c.Request.Body)
	if err == nil {
		c.JSON(http.StatusOK, gin.H{"read": n})
	}
	return err
}

// unread answers without reading the body.
func unread(c *gin.Context) error {
	c.JSON(http.StatusOK, gin.H{"read": 0})
	return nil
}

// drip starts sending single bytes, a few in each window, until the connection is closed.
func drip(t testing.TB, c *wire, text string) {
	tick := time.NewTicker(shortWindow / 5)
	ctx := t.Context()
	go func() {
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if _, err := io.WriteString(c, text); err != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
}

const postHeader = "POST / HTTP/1.1\r\nHost: platform\r\n"

// bodies are ways to send a body too slowly: the header, and the text that is then repeated.
var slowBodies = map[string][2]string{
	"stalled, length told":  {postHeader + "Content-Length: 1000\r\n\r\nabc", ""},
	"dripping, length told": {postHeader + "Content-Length: 100000\r\n\r\n", "x"},
	"stalled, chunked":      {postHeader + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", ""},
	"dripping, chunked":     {postHeader + "Transfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"},
	"stalled, a large one":  {postHeader + "Content-Length: 10000000\r\n\r\nabc", ""},
}

// Planted: every byte starts a new window; the deadline cleared when it has passed, after which net/http waits
// for the rest before it answers.
func TestBoundBody_SlowClientGets408(t *testing.T) {
	t.Parallel()
	for name, slow := range slowBodies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, logs := boundedServer(t, shortWindow, readAll)
			c := dial(t, url)
			c.send(t, slow[0])
			drip(t, c, slow[1])
			r := c.response(t)
			answered(t, r, http.StatusRequestTimeout, bodyTooSlow)
			if lines := logs.Lines(t, "refused"); len(lines) != 1 || lines[0]["code"] != "body_too_slow" {
				t.Errorf("log has %s", logs)
			}
			if rest, err := io.ReadAll(c.in); len(rest) > 0 {
				t.Errorf("after the answer came %q, %v", rest, err)
			}
		})
	}
}

// A client that is refused without reading its body must not hold the connection either: net/http reads some
// of the body before it answers. Planted: no deadline until the first read.
func TestBoundBody_UnreadBodyHoldsNothing(t *testing.T) {
	t.Parallel()
	for name, slow := range slowBodies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, _ := boundedServer(t, shortWindow, unread)
			c := dial(t, url)
			c.send(t, slow[0])
			drip(t, c, slow[1])
			if r := c.response(t); r.Status != http.StatusOK {
				t.Errorf("%d %s", r.Status, r.Body)
			}
			if rest, err := io.ReadAll(c.in); len(rest) > 0 {
				t.Errorf("after the answer came %q, %v", rest, err)
			}
		})
	}
}

// An upload that takes several windows and sends enough in each must succeed.
func TestBoundBody_LongUploadAboveTheMinimumRatePasses(t *testing.T) {
	t.Parallel()
	const window, pieces, piece = 4 * time.Second, 15, 4 << 10
	url, _ := boundedServer(t, window, readAll)
	c := dial(t, url)
	c.send(t, postHeader+fmt.Sprintf("Content-Length: %d\r\n\r\n", pieces*piece))
	tick := time.NewTicker(window / 10)
	defer tick.Stop()
	for range pieces {
		<-tick.C
		c.send(t, strings.Repeat("x", piece))
	}
	if r := c.response(t); r.Status != http.StatusOK || string(r.Body) != fmt.Sprintf(`{"read":%d}`, pieces*piece) {
		t.Errorf("%d %s", r.Status, r.Body)
	}
}

// The deadline must be cleared when the body has been read: net/http continues to read the connection to
// detect a disconnect, and would take the deadline for one. The connection must serve the next request.
func TestBoundBody_DeadlineEndsWithTheBody(t *testing.T) {
	t.Parallel()
	const window = time.Second
	thinks := func(c *gin.Context) error {
		if err := readAll(c); err != nil {
			return err
		}
		_, _ = c.Request.Body.Read(make([]byte, 1)) // past the end
		select {
		case <-c.Request.Context().Done():
			t.Errorf("the context ended: %v", context.Cause(c.Request.Context()))
		case <-time.After(window + window/2):
		}
		return nil
	}
	url, _ := boundedServer(t, window, thinks)
	c := dial(t, url)
	// The bodies have a window's share, less, and more; one request in between has no body.
	for _, n := range []int{204, 1, 0, 5000} {
		c.send(t, postHeader+fmt.Sprintf("Content-Length: %d\r\n\r\n", n)+strings.Repeat("x", n))
		if r := c.response(t); r.Status != http.StatusOK || string(r.Body) != fmt.Sprintf(`{"read":%d}`, n) {
			t.Errorf("%d bytes: %d %s", n, r.Status, r.Body)
		}
		c.send(t, postHeader+fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", n+1, strings.Repeat("x", n+1)))
		if r := c.response(t); r.Status != http.StatusOK || string(r.Body) != fmt.Sprintf(`{"read":%d}`, n+1) {
			t.Errorf("%d bytes, chunked: %d %s", n+1, r.Status, r.Body)
		}
	}
}

// A keep-alive client that waits for its answers must not hit the deadline of a body.
func TestBoundBody_WholePlatformServesOnOneConnection(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	c := dial(t, p.URL)
	for i := range 3 {
		body := form(file("a.txt", "", strings.Repeat("x", 1000*i)))
		c.send(t, uploadHeader(w, fmt.Sprintf("Content-Length: %d", len(body)))+body)
		accepted(t, c.response(t))
		c.send(t, uploadHeader(w, "Content-Length: 4")+"junk")
		answered(t, c.response(t), http.StatusBadRequest, brokenBody)
	}
	if n := count(t, p, "pending_uploads"); n != 3 {
		t.Errorf("%d files staged, want 3", n)
	}
}
