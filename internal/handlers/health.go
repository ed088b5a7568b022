package handlers

import (
	"context"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
)

// readyTimeout bounds the queries of /readyz.
const readyTimeout = 3 * time.Second

// OperatingHandler serves the health and readiness checks. They need no token: they name no workspace and no
// file.
type OperatingHandler struct {
	ready func(context.Context) (Readiness, error)
}

// Readiness is the state that /readyz reports.
type Readiness struct {
	SchemaVersion uint
	Staging       bool   // uploads to poll workspaces are staged
	Problem       string // why the platform is not ready; "" if it is
	Stopping      bool   // not ready because of a graceful stop
}

// NewOperatingHandler returns the handler. ready returns the state; its error means that the database does
// not answer.
func NewOperatingHandler(ready func(context.Context) (Readiness, error)) *OperatingHandler {
	return &OperatingHandler{ready: ready}
}

// Health answers 200 while the process runs.
func (h *OperatingHandler) Health(c *gin.Context) error {
	c.PureJSON(http.StatusOK, gin.H{"status": "ok"})
	return nil
}

// checkReady calls ready, and returns when ctx is done even if ready does not: lib/pq keeps reading from a
// hung server after its context is done.
func (h *OperatingHandler) checkReady(ctx context.Context) (Readiness, error) {
	type answer struct {
		readiness Readiness
		err       error
	}
	answers := make(chan answer, 1)
	go func() {
		r, err := h.ready(ctx)
		answers <- answer{r, err}
	}()
	select {
	case a := <-answers:
		return a.readiness, a.err
	case <-ctx.Done():
		return Readiness{}, ctx.Err()
	}
}

// Ready answers 200 if the platform can serve requests and is not stopping, otherwise 503 with the reason.
func (h *OperatingHandler) Ready(c *gin.Context) error {
	ctx, cancel := context.WithTimeout(c.Request.Context(), readyTimeout)
	defer cancel()
	r, err := h.checkReady(ctx)
	switch {
	case err != nil:
		return refuse(http.StatusServiceUnavailable, "database_unavailable", "the database does not answer").because(err)
	case r.Stopping: // not an error: Render would log a failure
		c.PureJSON(http.StatusServiceUnavailable, gin.H{"error": "the platform is stopping", "code": "not_ready", "schema_version": r.SchemaVersion})
		return nil
	case r.Problem != "":
		return refuse(http.StatusServiceUnavailable, "not_ready", r.Problem).with("schema_version", r.SchemaVersion)
	}
	c.PureJSON(http.StatusOK, gin.H{"status": "ready", "schema_version": r.SchemaVersion, "staging": r.Staging})
	return nil
}
