// Package server is the only place where the parts meet: it opens the database, builds the
// parts, and serves the routes until it is told to stop.
//
// It promises a graceful stop: first /readyz says so, for as long as it is configured, so that a
// balancer looks elsewhere; then no new connections, requests in flight may finish for up to
// 30 seconds, and last the database connections are closed and the private PostgreSQL, if there is
// one, is stopped.
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

	// writeBytes is what a client has to accept in the time that patience.write gives it.
	writeBytes = 32 << 10

	// drainTimeout is how long requests in flight may go on after a stop.
	drainTimeout = 30 * time.Second

	// backgroundTimeout is how long what goes on in the background may take to end then.
	backgroundTimeout = 5 * time.Second
)

// patience is how long slow clients are waited for.
type patience struct {
	header time.Duration // for the header of a request
	body   time.Duration // for a body, as long as it brings less than the minimum rate
	write  time.Duration // for writeBytes to be accepted
}

// usualPatience lets go of every slow client within 30 seconds: who has had his time for the
// header has less than that left for the body or the answer. 16 KiB/s are ten times what an answer
// has to be read at, and sixteen times the least rate of a body.
var usualPatience = patience{header: 8 * time.Second, body: 20 * time.Second, write: 20 * time.Second}

// Server is a platform that is ready to serve.
type Server struct {
	config   config.Config
	patience patience
	log      *slog.Logger
	listener net.Listener
	postgres *embeddedpg.Server // nil: the operator's database
	db       *sql.DB
	staging  *sql.DB
	tokens   *wsauth.Tokens
	direct   string  // connection string of PostgreSQL itself
	sessions *sql.DB // to it; nil: no pooler stands in between
	telling  *sql.DB // for the news alone
	news     *notify.Hub
	sweeper  *sweeper.Sweeper       // nil: the schema is too old for it
	bucket   *pendinguploads.ObjectStorage // nil: the schema is too old for it
	http     *http.Server
	stopping atomic.Bool

	metrics         *metrics.Platform
	metricsListener net.Listener // nil: they are served with everything else
	metricsHTTP     *http.Server
	watching        *sql.DB          // for the metrics and /readyz
	tracing         *tracing.Tracing // nil: no traces
}

// New takes the address, prepares the database and builds the platform. The private
// PostgreSQL is started and migrated; the operator's database must have the base tables
// already, and uploads to poll workspaces are staged only if it has theirs. The error is
// a sentence for a person.
func New(ctx context.Context, c config.Config, log *slog.Logger) (*Server, error) {
	return newServer(ctx, c, usualPatience, log)
}

func newServer(ctx context.Context, c config.Config, p patience, log *slog.Logger) (_ *Server, err error) {
	s := &Server{config: c, patience: p, log: log}
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	// The address first: if it is taken, nothing else need be started.
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", c.Addr)
	if err != nil {
		return nil, fmt.Errorf("cannot serve on %s: %w; free it, or choose another with --addr", c.Addr, err)
	}
	s.listener = stallListener{listener, p.write}
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
		ReadHeaderTimeout: s.patience.header,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnState:         boundUnread(s.patience.write),
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
}

// Addr is the address that is served, with the port that was chosen if none was named.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Run serves until ctx is done, or something that it cannot go on without fails, and then
// stops all of it. It is called once.
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
	var gone <-chan struct{}
	if s.postgres != nil {
		gone = s.postgres.Done()
	}
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-gone:
		_ = s.http.Close()
		return fmt.Errorf("%w; its log is postgres.log in the data folder", s.postgres.Err())
	case <-ctx.Done():
	}
	s.log.InfoContext(ctx, "stopping", "at_most", s.config.DrainDelay+drainTimeout)
	s.stopping.Store(true)
	select {
	case <-time.After(s.config.DrainDelay):
	case <-gone: // requests in flight will learn it
	}
	s.news.Close() // held polls and streams would go on for as long as they may
	drain, cancel := context.WithTimeout(background, drainTimeout)
	defer cancel()
	if err := s.http.Shutdown(drain); err != nil {
		s.log.WarnContext(ctx, "requests in flight were cut", "error", err)
		_ = s.http.Close()
	}
	s.log.InfoContext(ctx, "stopped")
	return nil
}

// await waits for what went on in the background. lib/pq waits for a database that hangs whatever a context
// says, and so do files on a file system that does: they end with the process.
func (s *Server) await(background *sync.WaitGroup) {
	done := make(chan struct{})
	go func() {
		background.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(backgroundTimeout):
		s.log.Warn("stopping in the middle of background work, which does not end; the database or the store may be hanging")
	}
}

// release gives back what New took, in the opposite order.
func (s *Server) release() {
	if s.bucket != nil {
		_ = s.bucket.Close()
	}
	for _, db := range []*sql.DB{s.telling, s.watching, s.sessions, s.staging, s.db} {
		if db != nil {
			_ = db.Close()
		}
	}
	if s.postgres != nil {
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		if err := s.postgres.Stop(ctx); err != nil {
			s.log.Error("private PostgreSQL did not stop cleanly", "error", err)
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
		s.log.Warn("the last traces were not sent", "error", err)
	}
}
