package handlers

import (
	"context"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
)

// readyTimeout bounds what /readyz asks the database.
const readyTimeout = 3 * time.Second

// OperatingHandler tells operators and load balancers how the platform is. It needs no token:
// it names no workspace and no file.
type OperatingHandler struct {
	ready func(context.Context) (Readiness, error)
}

// Readiness is what /readyz says.
type Readiness struct {
	SchemaVersion uint
	Staging       bool   // uploads to poll workspaces are staged
	Problem       string // why the platform is not ready; "" if it is
	Stopping      bool   // it is not, and on purpose
}

// NewOperatingHandler returns the handler. ready finds out how things are; an error means that
// the database does not answer.
func NewOperatingHandler(ready func(context.Context) (Readiness, error)) *OperatingHandler {
	return &OperatingHandler{ready: ready}
}

// Health answers while the process lives.
func (h *OperatingHandler) Health(c *gin.Context) error {
	c.PureJSON(http.StatusOK, gin.H{"status": "ok"})
	return nil
}

// checkReady asks the database, and stops waiting when ctx is over: lib/pq goes on reading from a
// server that has stopped, whatever its context says.
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

// Ready answers 200 if requests can be served, and will be for a while, 503 and why otherwise.
func (h *OperatingHandler) Ready(c *gin.Context) error {
	ctx, cancel := context.WithTimeout(c.Request.Context(), readyTimeout)
	defer cancel()
	r, err := h.checkReady(ctx)
	switch {
	case err != nil:
		return refuse(http.StatusServiceUnavailable, "database_unavailable", "the database does not answer").because(err)
	case r.Stopping: // nothing has failed, so nothing is logged as a failure
		c.PureJSON(http.StatusServiceUnavailable, gin.H{"error": "the platform is stopping", "code": "not_ready", "schema_version": r.SchemaVersion})
		return nil
	case r.Problem != "":
		return refuse(http.StatusServiceUnavailable, "not_ready", r.Problem).with("schema_version", r.SchemaVersion)
	}
	c.PureJSON(http.StatusOK, gin.H{"status": "ready", "schema_version": r.SchemaVersion, "staging": r.Staging})
	return nil
}
