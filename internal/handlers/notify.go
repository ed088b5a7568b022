package handlers

import (
	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/notify"
)

const hubKey = "handlers.hub"

// Notify lets handlers announce what they did to those who wait for it.
func Notify(hub *notify.Hub) gin.HandlerFunc {
	return func(c *gin.Context) { c.Set(hubKey, hub) }
}

// publish says that there is news of these kinds in the workspace. It is called after the commit,
// and neither waits nor fails.
func publish(c *gin.Context, workspace uuid.UUID, kinds notify.Kind) {
	hub, _ := c.Value(hubKey).(*notify.Hub)
	hub.Publish(workspace, kinds)
}
