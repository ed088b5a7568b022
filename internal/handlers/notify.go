package handlers

import (
	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/notify"
)

const newsKey = "handlers.news"

// News lets handlers announce what they did to those who wait for it.
func News(hub *notify.Hub) gin.HandlerFunc {
	return func(c *gin.Context) { c.Set(newsKey, hub) }
}

// announce says that there is news of these kinds in the workspace. It is called after the commit,
// and neither waits nor fails.
func announce(c *gin.Context, workspace uuid.UUID, kinds notify.Kind) {
	hub, _ := c.Value(newsKey).(*notify.Hub)
	hub.Publish(workspace, kinds)
}
