package handlers

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
)

const (
	loggerKey       = "handlers.logger"
	requestIDKey    = "handlers.request_id"
	bodyKey         = "handlers.body"
	requestIDHeader = "X-Request-ID"
)

// validRequestID is what may go into a header and a log line as it is.
var validRequestID = regexp.MustCompile(`^[A-Za-z0-9._:/+=@-]{1,128}$`)

// Log gives every request an id and a logger that carries it, and writes one line when
// the request is over. The id is the caller's if it is sane, else a new one.
func Log(log *slog.Logger) gin.HandlerFunc {
	authFailures := newAuthFailureLimit()
	return func(c *gin.Context) {
		id := c.GetHeader(requestIDHeader)
		if !validRequestID.MatchString(id) {
			id = uuid.NewString()
		}
		c.Header(requestIDHeader, id)
		c.Set(requestIDKey, id)
		c.Set(loggerKey, log.With("request_id", id))
		c.Set(authFailureLimitKey, authFailures)
		start := time.Now()
		c.Next()
		logRequest(c, start)
	}
}

// logRequest is not part of Log, for what that has on its stack is held for as long as the request
// is: with a poll that waits, long.
//
//go:noinline
func logRequest(c *gin.Context, start time.Time) {
	logger(c).InfoContext(c, "request", "method", c.Request.Method, "route", c.FullPath(), "status", c.Writer.Status(),
		"bytes", max(c.Writer.Size(), 0), "duration", time.Since(start), "client_ip", c.ClientIP())
}

// Recover answers a panic with a 500 and logs it with its stack.
func Recover() gin.HandlerFunc {
	return func(c *gin.Context) {
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler: //nolint:errorlint // the very value is how net/http is told to hang up
				panic(p)
			default:
				logger(c).ErrorContext(c, "panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				Render(c, fmt.Errorf("panic: %v", p))
				c.Abort()
			}
		}()
		c.Next()
	}
}

// NotFound answers for paths that are not routes.
func NotFound(*gin.Context) error {
	return refuse(http.StatusNotFound, "not_found", "no such path; see /openapi.yaml")
}

// MethodNotAllowed answers for routes that have other methods.
func MethodNotAllowed(*gin.Context) error {
	return refuse(http.StatusMethodNotAllowed, "method_not_allowed", "this path has other methods; see the Allow header")
}

// OriginNotAllowed is the error for a browser's request from an origin that is not configured.
func OriginNotAllowed() error {
	return refuse(http.StatusForbidden, "origin_not_allowed", "this origin is not in CORS_ORIGINS of this platform")
}

// errSlowBody: a request's body comes too slowly to go on waiting for it.
var errSlowBody = errors.New("handlers: request body too slow")

// minBodyRate is the least rate of a request's body, in bytes per second. Below that even a
// one-page document takes minutes; who sends less keeps a connection for nothing.
const minBodyRate = 1 << 10

// drainTimeout is how long a client that is refused may go on sending.
const drainTimeout = 10 * time.Second

// BoundBody gives a request's body a minimum rate, since ReadHeaderTimeout does not bound
// it: in every window of time it must bring the share that minBodyRate asks for, or
// reading fails.
func BoundBody(window time.Duration) gin.HandlerFunc {
	windowBytes := int64(window.Seconds() * minBodyRate)
	return func(c *gin.Context) {
		if body := c.Request.Body; body != nil && body != http.NoBody {
			b := &boundBody{ReadCloser: body, conn: http.NewResponseController(c.Writer), window: window, windowBytes: max(windowBytes, 1)}
			// Also for a body that no handler reads: net/http reads some of it before it answers.
			b.setDeadline(window)
			// In a copy of the request: by the body in its own, net/http tells how much of it is
			// bytesLeft and whether the client waits to be asked for it.
			c.Request = c.Request.WithContext(c.Request.Context())
			c.Request.Body = b
			c.Set(bodyKey, b)
		}
	}
}

type boundBody struct {
	io.ReadCloser
	conn        *http.ResponseController
	window      time.Duration
	windowBytes int64         // bytes that each window must bring
	bytesLeft   int64         // of the present window's share
	timeLeft    time.Duration // left of the present window
	readStarted bool          // for the body, by reading: one who sends Expect waits for that
	err         error         // what ended the body
}

// setDeadline bounds the next wait for the client.
func (b *boundBody) setDeadline(d time.Duration) {
	// A connection without deadlines is one of a test; there is nothing to bound.
	_ = b.conn.SetReadDeadline(time.Now().Add(d))
}

// Read implements io.Reader. A window lasts until its share has come, so single bytes buy no
// time; and only what is spent waiting for the client counts, not what the platform takes to
// pass on what it has read.
func (b *boundBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.bytesLeft <= 0 {
		b.bytesLeft, b.timeLeft = b.windowBytes, b.window
	}
	start := time.Now()
	b.readStarted = true
	b.setDeadline(b.timeLeft)
	n, err := b.ReadCloser.Read(p)
	b.bytesLeft -= int64(n)
	b.timeLeft -= time.Since(start)
	switch {
	case errors.Is(err, io.EOF):
		// net/http goes on reading the connection to learn whether the client is there still;
		// a deadline left behind would look to it like a client who has gone.
		_ = b.conn.SetReadDeadline(time.Time{})
	case errors.Is(err, os.ErrDeadlineExceeded):
		// This deadline stays: without it net/http would wait for more of the body before it
		// answers.
		err = errSlowBody
	}
	b.err = err
	return n, err
}

// drain lets the client finish sending, for a while: one that is cut off while it sends seldom
// reads the answer. It goes past any limit that was put around the body. Who waits to be asked
// for a body is not asked for what nobody wants.
func drain(c *gin.Context) {
	b, ok := c.Value(bodyKey).(*boundBody)
	if !ok || b.err != nil || !b.readStarted && strings.EqualFold(c.GetHeader("Expect"), "100-continue") {
		return
	}
	b.setDeadline(drainTimeout)
	if _, b.err = io.Copy(io.Discard, b.ReadCloser); b.err == nil {
		b.err = io.EOF
		_ = b.conn.SetReadDeadline(time.Time{})
	}
}
