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

// traceTimeout bounds the export of the last spans when the platform stops.
const traceTimeout = 5 * time.Second

// observe prepares metrics and, if configured, traces.
func (s *Server) observe(ctx context.Context) error {
	s.metrics = metrics.New(metricsOptions(s.config))
	if s.config.MetricsAddr != "" {
		var lc net.ListenConfig
		listener, err := lc.Listen(ctx, "tcp", s.config.MetricsAddr)
		if err != nil {
			return fmt.Errorf("cannot listen on %s for metrics: %w; free it, or choose another address with --metrics-addr", s.config.MetricsAddr, err)
		}
		s.metricsListener = stallListener{listener, s.timeouts.write}
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

// watchDatabase adds the pools and the backlog to the metrics. They are read through a pool of their own, with one
// connection for a trivial query and one for counting: if all connections of the others are in use, or a count takes
// long, the database is not down.
func (s *Server) watchDatabase(staging bool) {
	s.metrics.WatchPool("main", s.pools.Queries)
	s.metrics.WatchPool("staging", s.pools.FileWrites)
	answers := func(ctx context.Context) error {
		_, err := s.pools.Metrics.ExecContext(ctx, `SELECT 1`)
		return err
	}
	s.metrics.WatchDatabase(answers, func(ctx context.Context) (metrics.Backlog, error) {
		if !staging {
			return metrics.Backlog{}, nil
		}
		b, err := pendinguploads.ReadBacklog(ctx, s.pools.Metrics)
		m := metrics.Backlog{Files: b.Files, Bytes: b.Bytes, Oldest: b.Oldest}
		if err == nil && s.bucket != nil {
			m.Garbage, err = pendinguploads.ReadGarbage(ctx, s.pools.Metrics)
		}
		return m, err
	})
}

// swept counts a sweep.
func (s *Server) swept(r sweeper.Result, took time.Duration, err error) {
	s.metrics.Swept(metrics.Sweep{
		AckedFiles: r.Acked, ExpiredFiles: r.Expired, AckedBytes: r.AckedBytes, ExpiredBytes: r.ExpiredBytes,
		InboxRows: r.Rows, Duration: took, Err: err,
	})
}

// MetricsAddr is the address on which metrics are served.
func (s *Server) MetricsAddr() string {
	if s.metricsListener == nil {
		return s.Addr()
	}
	return s.metricsListener.Addr().String()
}

// serveMetrics serves metrics on their own address, if configured, until ctx is done. It continues while requests drain,
// so that the drain can be observed.
func (s *Server) serveMetrics(ctx context.Context) {
	if s.metricsHTTP == nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = s.metricsHTTP.Close() })
	defer stop()
	if err := s.metricsHTTP.Serve(s.metricsListener); ctx.Err() == nil {
		s.log.ErrorContext(ctx, "serving metrics failed; they are not available until a restart", "error", err)
	}
}

// buildMetrics builds the only route of the separate address for metrics.
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
