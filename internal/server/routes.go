package server

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/gin-contrib/cors"
	"github.com/gin-gonic/gin"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/events"
	"github.com/molecule-ai/platform/internal/fairshare"
	"github.com/molecule-ai/platform/internal/forward"
	"github.com/molecule-ai/platform/internal/handlers"
	"github.com/molecule-ai/platform/internal/schema"
	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// OpenAPI is the wire contract, machine-readable. Tests check the real answers against it.
//
//go:embed openapi.yaml
var OpenAPI []byte

const (
	preflightMaxAge = 12 * time.Hour

	// maxAnswerBytes is what a push workspace may answer: as much as it may be asked.
	maxAnswerBytes = 1 << 20
)

// allowedHeaders are what pages of a listed origin may send: what the API reads, and what the canvas sends with
// every request.
var allowedHeaders = []string{"Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "If-Range", "Last-Event-ID", "Range",
	"X-Request-ID", "X-Molecule-Org-Slug", "X-Molecule-Org-Id", "X-Workspace-ID",
	"Tus-Resumable", "Upload-Length", "Upload-Offset", "Upload-Metadata", "Upload-Checksum", "Upload-Defer-Length", "Upload-Concat"}

// exposedHeaders are what those pages may read of an answer.
var exposedHeaders = []string{"Accept-Ranges", "Content-Disposition", "Content-Length", "Content-Range", "ETag", "Location", "Repr-Digest",
	"Retry-After", "X-Request-ID", "Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Upload-Length", "Upload-Offset", "Upload-Expires"}

// build makes the parts and puts them behind their routes.
func (s *Server) build(ctx context.Context) (http.Handler, error) {
	status, err := schema.Read(ctx, s.db)
	if err != nil {
		return nil, err
	}
	staging, err := status.Staging() // not on base
	if err != nil {
		return nil, err
	}

	c := s.config
	push := forward.New(forward.Options{AllowCIDRs: c.PushAllowCIDRs, MaxAnswerBytes: maxAnswerBytes})
	s.tokens = wsauth.New(s.db, c.AdminToken, s.log)
	store := workspaces.New(s.db, s.tokens, push.CheckURL)
	inbox := activity.New(s.db)
	limits := handlers.UploadLimits{
		MaxFileBytes: c.MaxFileBytes, MaxRequestBytes: c.MaxRequestBytes, MaxFiles: c.MaxFiles, ExpiresAfter: c.PendingTTL,
		SpoolBytes: c.SpoolBytes,
	}
	files := handlers.NewChatFilesHandler(store, push, limits, fairshare.New(int64(c.MaxUploads)))
	var receipts *events.Log // nil on base
	if staging {
		receipts = events.New(s.db, inbox)
	}
	s.openNews(inbox, receipts)
	var pending *handlers.PendingUploadsHandler
	var stream *handlers.EventsHandler
	switch {
	case staging:
		storage, err := s.openStorage(ctx, inbox)
		if err != nil {
			return nil, err
		}
		files.WithPendingUploads(storage, c.SpoolDir)
		s.sweeper = newSweeper(storage, inbox, events.NewPruner(receipts), c, s.log, s.swept).WithIdentities(store)
		stream = handlers.NewEventsHandler(store, s.tokens, receipts, s.news, fairshare.New(int64(c.MaxStreams)))
		pending = handlers.NewPendingUploadsHandler(store, storage, fairshare.New(int64(c.MaxDownloads)))
		if c.StorageRedirect {
			pending.WithSignedURLs(s.bucket)
		}
	case c.StorageURL != "":
		return nil, errors.New("STORAGE_URL is set, but the database is not up to date; run 'platform migrate up' with the same DATABASE_URL first")
	default:
		inbox.WithoutReaders()
		store.WithoutRotation()
		s.log.WarnContext(ctx, "the schema is at base: uploads to poll workspaces are refused, nothing is swept, there are no event streams; run 'platform migrate up' and restart")
	}

	s.watchDatabase(staging)
	var scrape *handlers.MetricsHandler
	if s.metricsListener == nil {
		scrape = handlers.NewMetricsHandler(s.metrics)
	}
	engine, err := s.engine()
	if err != nil {
		return nil, err
	}
	rates := handlers.NewRateLimits(c.RateLimit)
	json := fairshare.New(c.MaxJSONBytes)
	route(engine, s.tokens, parts{
		rates:      rates,
		operating:  handlers.NewOperatingHandler(s.ready(staging)),
		metrics:    scrape,
		registry:   handlers.NewRegistryHandler(store, s.tokens, c.OpenRegistration, rates, json).WithHostCheck(s.hostCheck()),
		workspaces: handlers.NewWorkspacesHandler(store, s.tokens),
		activity:   handlers.NewActivityHandler(store, s.tokens, inbox, s.news, fairshare.New(int64(c.MaxWaits))),
		a2a:        handlers.NewA2AHandler(store, inbox, push, fairshare.New(int64(c.MaxMessages))),
		files:      files,
		pending:    pending,
		events:     stream,
		json:       json,
	})
	return engine, nil
}

type parts struct {
	operating  *handlers.OperatingHandler
	metrics    *handlers.MetricsHandler // nil: they have an address of their own
	registry   *handlers.RegistryHandler
	workspaces *handlers.WorkspacesHandler
	activity   *handlers.ActivityHandler
	a2a        *handlers.A2AHandler
	files      *handlers.ChatFilesHandler
	pending    *handlers.PendingUploadsHandler // nil: staging is not wired, and events neither
	events     *handlers.EventsHandler
	rates      *handlers.RateLimits // nil: none
	json       *fairshare.Budget    // bytes of messages and pages held at once
}

// sharedConns returns how many connections of the pool Queries the workspaces share for statements that may take long or
// wait for a lock. The rest is for short statements, such as looking up a token or a single row.
func sharedConns(queryConns int) int64 { return int64(queryConns) * 2 / 3 }

// route is the route table.
func route(e *gin.Engine, tokens *wsauth.Tokens, p parts) {
	do := handlers.Wrap
	known := handlers.Account(p.json)
	own, admin := tokens.RequireWorkspace(handlers.Render), tokens.RequireAdmin(handlers.Render)

	for _, method := range []string{http.MethodGet, http.MethodHead} { // probes use both
		e.Handle(method, "/health", do(p.operating.Health))
		e.Handle(method, "/readyz", do(p.operating.Ready))
	}
	e.GET("/openapi.yaml", func(c *gin.Context) { c.Data(http.StatusOK, "application/yaml", OpenAPI) })
	e.GET("/uploads/limits", do(p.files.Limits))
	if p.metrics != nil {
		e.GET("/metrics", do(p.metrics.Scrape))
	}

	// These two authorize their callers themselves: the workspace is named in the body.
	e.POST("/registry/register", p.registry.Identify, do(p.registry.Register))
	e.POST("/registry/heartbeat", p.registry.Identify, do(p.registry.Heartbeat))

	e.POST("/workspaces", admin, known, do(p.workspaces.Create))
	e.GET("/workspaces", admin, do(p.workspaces.List))
	e.DELETE("/workspaces/:id", admin, do(p.workspaces.Remove))

	w := e.Group("/workspaces/:id", own, p.rates.Guard, known)
	w.GET("", do(p.workspaces.Show))
	w.POST("/tokens", do(p.workspaces.MintToken))
	w.GET("/tokens", do(p.workspaces.ListTokens))
	w.DELETE("/tokens/:token_id", do(p.workspaces.RevokeToken))
	w.POST("/inbound-secret", do(p.workspaces.RotateSecret))
	w.GET("/activity", do(p.activity.List))
	w.POST("/a2a", do(p.a2a.Send))
	w.POST("/chat/uploads", do(p.files.Upload))
	if p.pending == nil {
		return
	}
	w.GET("/events/stream", do(p.events.Stream))
	w.GET("/pending-uploads", do(p.pending.List))
	w.GET("/pending-uploads/:file_id", do(p.pending.Show))
	w.GET("/pending-uploads/:file_id/content", do(p.pending.Content))
	w.HEAD("/pending-uploads/:file_id/content", do(p.pending.Content))
	w.POST("/pending-uploads/:file_id/ack", do(p.pending.Ack))
}

// engine returns a router with what every request goes through.
func (s *Server) engine() (*gin.Engine, error) {
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.HandleMethodNotAllowed = true
	// A redirect would answer with HTML, and lose the body of a POST.
	e.RedirectTrailingSlash = false
	if err := e.SetTrustedProxies(s.config.TrustedProxies); err != nil {
		return nil, fmt.Errorf("TRUSTED_PROXIES: %w", err)
	}
	if s.tracing != nil {
		e.Use(handlers.Trace(s.tracing))
	}
	e.Use(handlers.ForwardedFor(), handlers.SafeHeaders())
	e.Use(handlers.Log(s.log), handlers.Measure(s.metrics), handlers.Recover(), handlers.BoundBody(s.timeouts.body), handlers.Notify(s.news),
		handlers.ShareConnections(fairshare.New(sharedConns(s.config.DatabaseQueryConns))))
	if len(s.config.CORSOrigins) > 0 {
		e.Use(cors.New(cors.Config{
			AllowOrigins: s.config.CORSOrigins,
			AllowMethods: []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPatch, http.MethodDelete},
			AllowHeaders: allowedHeaders, ExposeHeaders: exposedHeaders, MaxAge: preflightMaxAge,
			// The canvas fetches with credentials: "include". Any origin together with credentials would let
			// every page act as its visitor, and browsers refuse it.
			AllowCredentials: !slices.Contains(s.config.CORSOrigins, "*"),
			// Asked about origins that are not listed. What follows is a 403 without a body,
			// so it gets one here.
			AllowOriginWithContextFunc: func(c *gin.Context, _ string) bool {
				handlers.Render(c, handlers.OriginNotAllowed())
				return false
			},
		}))
	}
	e.Use(handlers.Unambiguous()) // after CORS: a page must be able to read why it was refused
	e.NoRoute(handlers.Wrap(handlers.NotFound))
	e.NoMethod(handlers.Wrap(handlers.MethodNotAllowed))
	return e, nil
}

// ready tells /readyz how the database is, and whether the platform is about to stop.
func (s *Server) ready(staging bool) func(context.Context) (handlers.Readiness, error) {
	return func(ctx context.Context) (handlers.Readiness, error) {
		if s.stopping.Load() {
			return handlers.Readiness{Stopping: true}, nil
		}
		status, err := schema.Read(ctx, s.pools.Metrics) // requests may hold all connections of the other pools
		if err != nil {
			return handlers.Readiness{}, err
		}
		r := handlers.Readiness{SchemaVersion: status.Current, Staging: staging}
		if _, err := status.Staging(); err != nil {
			r.Problem = err.Error()
		}
		return r, nil
	}
}
