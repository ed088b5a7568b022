package server

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/handlers"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// Routes lists the routes of a platform that has everything wired.
func Routes() (gin.RoutesInfo, error) {
	e, err := (&Server{log: slog.New(slog.DiscardHandler)}).engine()
	if err != nil {
		return nil, err
	}
	route(e, &wsauth.Tokens{}, parts{pending: &handlers.PendingUploadsHandler{}, metrics: &handlers.MetricsHandler{}, registry: &handlers.RegistryHandler{}, events: &handlers.EventsHandler{}})
	return e.Routes(), nil
}

// NewWithTimeouts is New with d for each of the timeouts of slow clients. open holds the remote addresses of the open
// connections.
func NewWithTimeouts(ctx context.Context, c config.Config, log *slog.Logger, d time.Duration) (s *Server, open *sync.Map, err error) {
	s, err = newServer(ctx, c, timeouts{header: d, body: d, write: d}, log)
	if err != nil {
		return nil, nil, err
	}
	open = &sync.Map{}
	usual := s.http.ConnState
	s.http.ConnState = func(conn net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Store(conn.RemoteAddr().String(), true)
		case http.StateClosed:
			open.Delete(conn.RemoteAddr().String())
		}
		if usual != nil {
			usual(conn, state)
		}
	}
	return s, open, nil
}
