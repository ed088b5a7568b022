package server

import (
	"log/slog"

	"github.com/gin-gonic/gin"

	"github.com/molecule-ai/platform/internal/handlers"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// Routes lists the routes of a platform that has everything wired.
func Routes() (gin.RoutesInfo, error) {
	e, err := (&Server{log: slog.New(slog.DiscardHandler)}).engine()
	if err != nil {
		return nil, err
	}
	route(e, &wsauth.Tokens{}, parts{pending: &handlers.PendingUploadsHandler{}, metrics: &handlers.MetricsHandler{}, events: &handlers.EventsHandler{}})
	return e.Routes(), nil
}
