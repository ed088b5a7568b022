package handlers

import (
	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/notify"
)

const hubKey = "handlers.hub"

// Notify gives handlers access to the hub.
func Notify(hub *notify.Hub) gin.HandlerFunc {
	return func(c *gin.Context) { c.Set(hubKey, hub) }
}

// publish wakes held polls and streams of the workspace. Call it after the commit. It does not block, and
// does nothing without a hub.
func publish(c *gin.Context, workspace uuid.UUID, kinds notify.Kind) {
	hub, _ := c.Value(hubKey).(*notify.Hub)
	hub.Publish(workspace, kinds)
}
