// Package server is the only place where the parts meet: it opens the database, builds the
// parts, and serves the routes until it is told to stop.
//
// It promises a graceful stop: no new connections, requests in flight may finish for up to
// 30 seconds, then the database connections are closed and the private PostgreSQL, if there is
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
	"time"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/embeddedpg"
	"github.com/molecule-ai/platform/internal/metrics"
	"github.com/molecule-ai/platform/internal/news"
	"github.com/molecule-ai/platform/internal/sweeper"
	"github.com/molecule-ai/platform/internal/tracing"
	"github.com/molecule-ai/platform/internal/wsauth"
)

const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10

	// bodyWindow is how long a request's body may bring less than the minimum rate.
	bodyWindow = 20 * time.Second

	// stallTimeout is how long a client may take to accept writeBytes: about 1 KiB/s.
	stallTimeout = 30 * time.Second
	writeBytes   = 32 << 10

	// drainTimeout is how long requests in flight may go on after a stop.
	drainTimeout = 30 * time.Second
)

// Server is a platform that is ready to serve.
type Server struct {
	config   config.Config
	log      *slog.Logger
	listener net.Listener
	postgres *embeddedpg.Server // nil: the operator's database
	db       *sql.DB
	staging  *sql.DB
	tokens   *wsauth.Tokens
	dsn      string
	telling  *sql.DB // for the news alone
	news     *news.Hub
	sweeper  *sweeper.Sweeper // nil: the schema is too old for it
	http     *http.Server

	metrics         *metrics.Platform
	metricsListener net.Listener // nil: they are served with everything else
	metricsHTTP     *http.Server
	watching        *sql.DB          // for the metrics alone
	tracing         *tracing.Tracing // nil: no traces
}

// New takes the address, prepares the database and builds the platform. The private
// PostgreSQL is started and migrated; the operator's database must have the base tables
// already, and uploads to poll workspaces are staged only if it has theirs. The error is
// a sentence for a person.
func New(ctx context.Context, c config.Config, log *slog.Logger) (_ *Server, err error) {
	s := &Server{config: c, log: log}
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
	s.listener = stallListener{listener, stallTimeout}
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
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
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
	defer wg.Wait()
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
	s.log.InfoContext(ctx, "stopping", "at_most", drainTimeout)
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

// release gives back what New took, in the opposite order.
func (s *Server) release() {
	for _, db := range []*sql.DB{s.telling, s.watching, s.staging, s.db} {
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

// stallListener bounds how long a connection's peer may take to accept a write. A deadline
// for a whole answer would cut off large files on slow lines; this one only cuts off those
// who have stopped reading.
type stallListener struct {
	net.Listener
	timeout time.Duration
}

func (l stallListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return stallConn{conn, l.timeout}, nil
}

type stallConn struct {
	net.Conn
	timeout time.Duration
}

// Write implements net.Conn. A long answer is written in slices with a deadline each: who
// reads slowly and steadily is not one who has stopped.
func (c stallConn) Write(p []byte) (int, error) {
	written := 0
	for {
		if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(p[written:min(len(p), written+writeBytes)])
		if written += n; err != nil || written == len(p) {
			return written, err
		}
	}
}

// CloseWrite is how net/http tells a client that an early answer is complete before it stops
// reading what the client still sends.
func (c stallConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
