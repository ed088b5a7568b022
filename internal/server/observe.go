package server

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/handlers"
	"github.com/molecule-ai/platform/internal/metrics"
	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/sweeper"
	"github.com/molecule-ai/platform/internal/tracing"
)

// traceTimeout is how long the last spans may take to be sent when the platform stops.
const traceTimeout = 5 * time.Second

// observe prepares metrics and, if they are configured, traces.
func (s *Server) observe(ctx context.Context) error {
	s.metrics = metrics.New(metricsOptions(s.config))
	if s.config.MetricsAddr != "" {
		var lc net.ListenConfig
		listener, err := lc.Listen(ctx, "tcp", s.config.MetricsAddr)
		if err != nil {
			return fmt.Errorf("cannot serve metrics on %s: %w; free it, or choose another with --metrics-addr", s.config.MetricsAddr, err)
		}
		s.metricsListener = stallListener{listener, s.patience.write}
	}
	if s.config.TracesEndpoint == "" {
		return nil
	}
	var err error
	s.tracing, err = tracing.New(ctx, s.config.TracesEndpoint, s.config.Version, s.log)
	return err
}

func metricsOptions(c config.Config) metrics.Options {
	limits := map[string]int{
		handlers.OperationUpload: c.MaxUploads, handlers.OperationContent: c.MaxDownloads,
		handlers.OperationWait: c.MaxWaits, handlers.OperationStream: c.MaxStreams,
	}
	return metrics.Options{
		Version: c.Version, PendingTTL: c.PendingTTL, SweepInterval: c.SweepInterval, SpoolDir: c.SpoolDir, SpoolBytes: c.SpoolBytes,
		Limits: limits,
	}
}

// watchDatabase has the metrics tell of the pools and of what is in the database. They have
// connections of their own, one to ask whether it answers and one to count: were all others in use, that would not mean that the database is away.
func (s *Server) watchDatabase(staging bool) {
	s.metrics.WatchPool("main", s.db)
	s.metrics.WatchPool("staging", s.staging)
	answers := func(ctx context.Context) error {
		_, err := s.watching.ExecContext(ctx, `SELECT 1`)
		return err
	}
	s.metrics.WatchDatabase(answers, func(ctx context.Context) (metrics.Backlog, error) {
		if !staging {
			return metrics.Backlog{}, nil
		}
		b, err := pendinguploads.ReadBacklog(ctx, s.watching)
		m := metrics.Backlog{Files: b.Files, Bytes: b.Bytes, Oldest: b.Oldest}
		if err == nil && s.bucket != nil {
			m.Garbage, err = pendinguploads.ReadGarbage(ctx, s.watching)
		}
		return m, err
	})
}

// swept counts a round of the sweep.
func (s *Server) swept(r sweeper.Result, took time.Duration, err error) {
	s.metrics.Swept(metrics.Sweep{
		AckedFiles: r.Acked, ExpiredFiles: r.Expired, AckedBytes: r.AckedBytes, ExpiredBytes: r.ExpiredBytes,
		InboxRows: r.Rows, Duration: took, Err: err,
	})
}

// MetricsAddr is the address that metrics are served on.
func (s *Server) MetricsAddr() string {
	if s.metricsListener == nil {
		return s.Addr()
	}
	return s.metricsListener.Addr().String()
}

// serveMetrics serves them on their own address, if they have one, until ctx is done. It goes
// on while requests are drained: an operator wants to see just that.
func (s *Server) serveMetrics(ctx context.Context) {
	if s.metricsHTTP == nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = s.metricsHTTP.Close() })
	defer stop()
	if err := s.metricsHTTP.Serve(s.metricsListener); ctx.Err() == nil {
		s.log.ErrorContext(ctx, "metrics are no longer served", "error", err)
	}
}

// buildMetrics gives the metrics' own address its only route.
func (s *Server) buildMetrics() error {
	if s.metricsListener == nil {
		return nil
	}
	engine, err := s.engine()
	if err != nil {
		return err
	}
	engine.GET("/metrics", handlers.Wrap(handlers.NewMetricsHandler(s.metrics).Scrape))
	s.metricsHTTP = s.httpServer(engine)
	return nil
}
