// Package server is the only place where the parts of the platform meet: it opens the database, builds the parts, and
// serves the routes until its context ends.
//
// It promises a graceful stop. First /readyz answers 503 for DRAIN_DELAY, so that load balancers stop sending requests.
// Then no new connections are accepted, and requests in flight may finish for up to 30 seconds. Last, the database
// connections are closed and the private PostgreSQL, if there is one, is stopped.
package server

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/database"
	"github.com/molecule-ai/platform/internal/embeddedpg"
	"github.com/molecule-ai/platform/internal/metrics"
	"github.com/molecule-ai/platform/internal/notify"
	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/sweeper"
	"github.com/molecule-ai/platform/internal/tracing"
	"github.com/molecule-ai/platform/internal/wsauth"
)

const (
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 64 << 10

	// writeBytes is what a client must accept within timeouts.write.
	writeBytes = 32 << 10

	// drainTimeout bounds requests in flight after a stop.
	drainTimeout = 30 * time.Second

	// backgroundTimeout bounds how long background work may take to end after that.
	backgroundTimeout = 5 * time.Second
)

// timeouts bound slow clients.
type timeouts struct {
	header time.Duration // for the header of a request
	body   time.Duration // for a body that arrives below the minimum rate
	write  time.Duration // for the client to accept writeBytes
}

// defaultTimeouts end every slow client within 30 seconds: header plus body, or header plus write, is 28. A client that
// accepts 1.6 KiB/s of an answer, or sends a body at the minimum rate of 1 KiB/s, is never cut.
var defaultTimeouts = timeouts{header: 8 * time.Second, body: 20 * time.Second, write: 20 * time.Second}

// Server is a platform that is ready to serve.
type Server struct {
	config   config.Config
	timeouts timeouts
	log      *slog.Logger
	listener net.Listener
	postgres *embeddedpg.Server // nil: the operator's database
	pools    *database.Pools
	db       *sql.DB // pools.Queries
	tokens   *wsauth.Tokens
	news     *notify.Hub
	sweeper  *sweeper.Sweeper              // nil: the schema is too old for it
	bucket   *pendinguploads.ObjectStorage // nil: the schema is too old for it
	http     *http.Server
	stopping atomic.Bool

	metrics         *metrics.Platform
	metricsListener net.Listener // nil: metrics are served on listener
	metricsHTTP     *http.Server
	tracing         *tracing.Tracing // nil: no traces
}

// New listens on the address, prepares the database and builds the platform. The private PostgreSQL is started and
// migrated. The operator's database must have the base tables already; uploads to poll workspaces are staged only if it
// has theirs. The error is a sentence for the operator.
func New(ctx context.Context, c config.Config, log *slog.Logger) (*Server, error) {
	return newServer(ctx, c, defaultTimeouts, log)
}

func newServer(ctx context.Context, c config.Config, t timeouts, log *slog.Logger) (_ *Server, err error) {
	s := &Server{config: c, timeouts: t, log: log}
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	// The address comes first: if it is in use, nothing else is started.
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", c.Addr)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w; free it, or choose another address with --addr", c.Addr, err)
	}
	s.listener = stallListener{listener, t.write}
	for _, warning := range c.Warnings() {
		log.WarnContext(ctx, warning)
	}
	if err := s.observe(ctx); err != nil {
		return nil, err
	}
	if err := s.openDatabase(ctx); err != nil {
		return nil, err
	}
	handler, err := s.build(ctx)
	if err != nil {
		return nil, err
	}
	s.http = s.httpServer(handler)
	return s, s.buildMetrics()
}

func (s *Server) httpServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: s.timeouts.header,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnState:         limitUnreadWhenIdle(s.timeouts.write),
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
}

// Addr is the address that is served, with the actual port if the configured one is 0.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Run serves until ctx is done or a part that it depends on fails, and then stops everything. It must be called once.
func (s *Server) Run(ctx context.Context) error {
	defer s.release()
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { s.tokens.Run(background) })
	wg.Go(func() { s.news.Run(background) })
	wg.Go(func() { s.serveMetrics(background) })
	if s.sweeper != nil {
		wg.Go(func() { s.sweeper.Run(background) })
	}
	defer s.await(&wg)
	defer stopBackground()

	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.listener) }()
	s.log.InfoContext(ctx, "serving", "addr", s.Addr(), "metrics_addr", s.MetricsAddr(), "embedded_database", s.postgres != nil)
	var postgresDone <-chan struct{}
	if s.postgres != nil {
		postgresDone = s.postgres.Done()
	}
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-postgresDone:
		_ = s.http.Close()
		return fmt.Errorf("%w; its log is postgres.log in the data folder", s.postgres.Err())
	case <-ctx.Done():
	}
	s.log.InfoContext(ctx, "stopping", "timeout", s.config.DrainDelay+drainTimeout)
	s.stopping.Store(true)
	select {
	case <-time.After(s.config.DrainDelay):
	case <-postgresDone: // requests in flight fail by themselves
	}
	s.news.Close() // ends held polls and streams, which would use all of drainTimeout
	drain, cancel := context.WithTimeout(background, drainTimeout)
	defer cancel()
	if err := s.http.Shutdown(drain); err != nil {
		s.log.WarnContext(ctx, "requests in flight were cut off after the drain timeout", "error", err)
		_ = s.http.Close()
	}
	s.log.InfoContext(ctx, "stopped")
	return nil
}

// await waits for background work to end. lib/pq goes on waiting for a database that hangs after the context has ended,
// and so does a read of a file system that hangs: such work ends with the process.
func (s *Server) await(background *sync.WaitGroup) {
	done := make(chan struct{})
	go func() {
		background.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(backgroundTimeout):
		s.log.Warn("the sweep, notifications or token records did not end within 5 s of the stop; nothing staged is lost; check whether the database or the object store hangs")
	}
}

// release closes what New opened, in reverse order.
func (s *Server) release() {
	if s.bucket != nil {
		_ = s.bucket.Close()
	}
	if s.pools != nil {
		_ = s.pools.Close()
	}
	if s.postgres != nil {
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		if err := s.postgres.Stop(ctx); err != nil {
			s.log.Error("the private PostgreSQL did not stop cleanly; it recovers on the next start", "error", err)
		}
	}
	for _, listener := range []net.Listener{s.metricsListener, s.listener} {
		if listener != nil {
			_ = listener.Close()
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), traceTimeout)
	defer cancel()
	if err := s.tracing.Close(ctx); err != nil {
		s.log.Warn("the last traces were not exported", "error", err)
	}
}
