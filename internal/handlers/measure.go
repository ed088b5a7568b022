package handlers

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/molecule-ai/platform/internal/fairshare"
	"github.com/molecule-ai/platform/internal/metrics"
	"github.com/molecule-ai/platform/internal/tracing"
)

const meterKey = "handlers.meter"

// The operations that are timed. Limits of requests in flight have the same names.
const (
	OperationUpload  = "upload"
	OperationContent = "content"
	OperationAck     = "ack"
	OperationPoll    = "poll"
	OperationWait    = "wait"   // a poll that may be held until there are rows
	OperationStream  = "stream" // a stream of events
)

// Operations maps routes to operations. Other routes are counted and not timed.
var Operations = map[string]string{
	"POST /workspaces/:id/chat/uploads":                    OperationUpload,
	"GET /workspaces/:id/pending-uploads/:file_id/content": OperationContent,
	"POST /workspaces/:id/pending-uploads/:file_id/ack":    OperationAck,
	"GET /workspaces/:id/activity":                         OperationPoll,
	"GET /workspaces/:id/events/stream":                    OperationStream,
}

func operation(c *gin.Context) string {
	o := Operations[c.Request.Method+" "+c.FullPath()]
	if wait := c.Query("wait"); o == OperationPoll && wait != "" && wait != "0" {
		return OperationWait // its duration is the client's choice
	}
	return o
}

// Measure counts and times every request, and gives handlers access to the metrics.
func Measure(m *metrics.Platform) gin.HandlerFunc {
	return func(c *gin.Context) {
		c.Set(meterKey, m)
		answered := m.Request(c.FullPath(), c.Request.Method, operation(c))
		defer func() { answered(c.Writer.Status()) }() // deferred, so that http.ErrAbortHandler is counted too
		c.Next()
	}
}

// meter returns the platform's metrics. A nil *Platform counts nothing.
func meter(c *gin.Context) *metrics.Platform {
	m, _ := c.Value(meterKey).(*metrics.Platform)
	return m
}

// spooling counts the bytes of the request's body as spooled while take runs.
func spooling(c *gin.Context, take func() error) error {
	spool := meter(c).Spool()
	defer spool.Done("")
	c.Request.Body = spool.Body(c.Request.Body)
	err := take()
	if err != nil {
		spool.Done(codeFor(c, err))
	}
	return err
}

// MetricsHandler serves the metrics. It needs no token: metrics name no workspace and no file.
type MetricsHandler struct {
	scrape  http.Handler
	scrapes *fairshare.Budget
}

// maxScrapes bounds concurrent scrapes: the route is public, and a scrape takes some work. The addresses share them.
const maxScrapes = 4

// NewMetricsHandler returns the handler.
func NewMetricsHandler(m *metrics.Platform) *MetricsHandler {
	return &MetricsHandler{scrape: m.Handler(), scrapes: fairshare.New(maxScrapes)}
}

// Scrape answers with all metrics.
func (h *MetricsHandler) Scrape(c *gin.Context) error {
	holder := addressHolder(c)
	if err := h.scrapes.Take(holder, 1); err != nil {
		return err
	}
	defer h.scrapes.Release(holder, 1)
	h.scrape.ServeHTTP(c.Writer, c.Request)
	return nil
}

// Trace starts a span for every request, and puts it into the request's context.
func Trace(t *tracing.Tracing) gin.HandlerFunc {
	return func(c *gin.Context) {
		ctx, end := t.Request(c.Request, c.FullPath(), c.ClientIP())
		c.Request = c.Request.WithContext(ctx)
		defer func() { end(c.Writer.Status()) }()
		c.Next()
	}
}
