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

// validRequestID is the form of a client's request id that is safe in a header and a log line.
var validRequestID = regexp.MustCompile(`^[A-Za-z0-9._:/+=@-]{1,128}$`)

// Log gives every request an id and a logger with that id, and logs one line when the request ends. The id
// is the client's X-Request-ID if it has a valid form, a new one otherwise.
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

// logRequest is a function of its own because the stack frame of Log lives as long as the request, which
// for a held poll is long.
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
			case http.ErrAbortHandler: // net/http compares the value itself
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

// NotFound is the handler for unknown paths.
func NotFound(*gin.Context) error {
	return refuse(http.StatusNotFound, "not_found", "no such path; see /openapi.yaml")
}

// MethodNotAllowed is the handler for paths that have routes for other methods only.
func MethodNotAllowed(*gin.Context) error {
	return refuse(http.StatusMethodNotAllowed, "method_not_allowed", "this path has other methods; see the Allow header")
}

// OriginNotAllowed is the error for a cross-origin request from an origin that is not configured.
func OriginNotAllowed() error {
	return refuse(http.StatusForbidden, "origin_not_allowed", "this origin is not in CORS_ORIGINS of this platform")
}

// errSlowBody: a request's body arrived more slowly than minBodyRate.
var errSlowBody = errors.New("handlers: request body too slow")

// minBodyRate is the minimum rate of a request's body in bytes per second. A slower client would take
// minutes for a one-page document, and hold a connection and a slot meanwhile.
const minBodyRate = 1 << 10

// drainTimeout bounds how long a refused client may continue to send.
const drainTimeout = 10 * time.Second

// BoundBody enforces minBodyRate on a request's body, which ReadHeaderTimeout does not cover. In every
// window of time the client must send the window's share of bytes, or reading fails with errSlowBody.
func BoundBody(window time.Duration) gin.HandlerFunc {
	windowBytes := int64(window.Seconds() * minBodyRate)
	return func(c *gin.Context) {
		if body := c.Request.Body; body != nil && body != http.NoBody {
			b := &boundBody{ReadCloser: body, conn: http.NewResponseController(c.Writer), window: window, windowBytes: max(windowBytes, 1)}
			// The deadline is set at once because net/http reads some of a body that no handler reads.
			b.setDeadline(window)
			// The request is copied because net/http uses its own request's body to learn how much of it is
			// left and whether the client awaits a 100 Continue.
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
	windowBytes int64         // bytes that the client must send in each window
	bytesLeft   int64         // bytes missing in the current window
	timeLeft    time.Duration // time left in the current window
	readStarted bool          // a read has sent 100 Continue to a client that awaits it
	err         error         // the error that ended the body
}

// setDeadline sets the deadline of the next read.
func (b *boundBody) setDeadline(d time.Duration) {
	// Only connections of tests do not support deadlines.
	_ = b.conn.SetReadDeadline(time.Now().Add(d))
}

// Read implements io.Reader. A window ends when its share has been read, so single bytes do not extend the
// deadline. Only time spent waiting for the client counts, not the time that the platform takes to process
// what it has read.
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
		// net/http continues to read the connection to detect a disconnect, and would take an expired
		// deadline for one.
		_ = b.conn.SetReadDeadline(time.Time{})
	case errors.Is(err, os.ErrDeadlineExceeded):
		// The deadline stays: without it net/http would wait for the rest of the body before it answers.
		err = errSlowBody
	}
	b.err = err
	return n, err
}

// drain lets the client finish sending, for at most drainTimeout, because a client whose connection is
// closed while it sends seldom reads the answer. It bypasses limits around the body. It does not read from
// a client that still awaits a 100 Continue.
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
