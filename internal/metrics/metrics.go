// Package metrics counts and times what the platform does, for Prometheus.
//
// Platform has one method per event, in the words of the domain; callers do not see Prometheus. All methods are safe
// for concurrent use, and do nothing on a nil *Platform, so that tests and commands need none.
//
// Metric names follow Prometheus' conventions and begin with molecule_, except those of the client library: go_ and
// process_ for the process, go_sql_ for the connection pools. Labels have few values: routes, methods, refusal codes.
// They never hold a workspace, a file or anything else that clients choose: each value costs memory until the process
// ends.
//
// The package decides nothing and stores nothing: counters start at zero with the process, and the only query it runs
// is the one passed to WatchDatabase.
package metrics

import (
	"database/sql"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Options are the configured values that dashboards and alerts compare the metrics with.
type Options struct {
	Version       string        // of the binary
	PendingTTL    time.Duration // after which an unacknowledged file expires
	SweepInterval time.Duration
	Limits        map[string]int // maximum number of concurrent requests, by operation
	SpoolBytes    int64          // maximum size of all uploads in flight
	SpoolDir      string         // folder of the uploads' temporary files; "": the system's
}

// Platform holds the metrics of one platform.
type Platform struct {
	registry *prometheus.Registry
	backlog  *backlog

	requests *prometheus.CounterVec
	inFlight *prometheus.GaugeVec
	duration *prometheus.HistogramVec
	refusals *prometheus.CounterVec

	stagedFiles, stagedBytes   prometheus.Counter
	fetchedFiles, fetchedBytes prometheus.Counter
	sentBytes                  prometheus.Counter
	ackedFiles, ackedBytes     prometheus.Counter
	ackLatency                 prometheus.Histogram
	replayed                   prometheus.Counter
	refusedBytes               *prometheus.CounterVec
	spooled, spoolReserved     prometheus.Gauge

	sweptFiles, sweptBytes *prometheus.CounterVec
	sweptRows, sweepErrors prometheus.Counter
	sweepDuration          prometheus.Histogram
	sweepSuccess           prometheus.Gauge

	objectDuration *prometheus.HistogramVec
	objectErrors   *prometheus.CounterVec
}

// Histogram buckets, in seconds. Requests take from a millisecond (an ack) to minutes (a large file over a slow
// connection); an ack comes between a moment and a day after the upload.
var (
	requestBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300}
	ackBuckets     = []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600}
	sweepBuckets   = []float64{.01, .05, .1, .5, 1, 5, 10, 30, 60, 300}
)

// ObjectOperations are the operations on the object store that are counted.
var ObjectOperations = []string{"write", "read", "delete", "sign"}

// States of a swept file.
const (
	stateAcked   = "acked"
	stateExpired = "expired"
)

// New returns the metrics of a platform that has just started. Each has its own registry, so that a process can hold
// several.
func New(o Options) *Platform {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), spoolDisk(o.SpoolDir))
	factory := promauto.With(registry)
	counter := func(name, help string) prometheus.Counter {
		return factory.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return factory.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return factory.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	p := &Platform{
		registry: registry,
		requests: counters("molecule_http_requests_total", "Requests answered, by route, method and status class.", "route", "method", "status"),
		inFlight: factory.NewGaugeVec(prometheus.GaugeOpts{Name: "molecule_requests_in_flight",
			Help: "Requests in progress, by operation; wait (held polls) and stream (event streams) are idle most of the time."}, []string{"operation"}),
		duration: factory.NewHistogramVec(prometheus.HistogramOpts{Name: "molecule_request_duration_seconds",
			Help: "Duration of successful requests, by operation.", Buckets: requestBuckets}, []string{"operation"}),
		refusals: counters("molecule_refusals_total", "Requests refused or failed, by route and error code.", "route", "code"),

		stagedFiles:  counter("molecule_staged_files_total", "Files staged."),
		stagedBytes:  counter("molecule_staged_bytes_total", "Bytes of staged files."),
		fetchedFiles: counter("molecule_fetched_files_total", "Files downloaded completely for the first time."),
		fetchedBytes: counter("molecule_fetched_bytes_total", "Bytes of files downloaded completely for the first time."),
		sentBytes:    counter("molecule_content_sent_bytes_total", "Bytes of file content sent, including ranges and repeated downloads."),
		ackedFiles:   counter("molecule_acked_files_total", "Files acknowledged."),
		ackedBytes:   counter("molecule_acked_bytes_total", "Bytes of acknowledged files."),
		ackLatency: factory.NewHistogram(prometheus.HistogramOpts{Name: "molecule_staged_to_acked_seconds",
			Help: "Time from staging a file to its acknowledgement, by the database's clock.", Buckets: ackBuckets}),
		replayed:      counter("molecule_replayed_uploads_total", "Uploads repeated with the same Idempotency-Key and answered without staging anything."),
		refusedBytes:  counters("molecule_refused_upload_bytes_total", "Bytes received for uploads that were then refused, by error code.", "code"),
		spooled:       gauge("molecule_spooled_bytes", "Bytes received of uploads in flight, in memory and temporary files."),
		spoolReserved: gauge("molecule_spool_reserved_bytes", "Bytes reserved by uploads in flight for what they have received."),

		sweptFiles:  counters("molecule_swept_files_total", "Files deleted by this replica, by state: acked, or expired without an ack.", "state"),
		sweptBytes:  counters("molecule_swept_bytes_total", "Bytes of files deleted by this replica, by state.", "state"),
		sweptRows:   counter("molecule_swept_inbox_rows_total", "Inbox rows deleted by this replica."),
		sweepErrors: counter("molecule_sweep_errors_total", "Sweeps that failed."),
		sweepDuration: factory.NewHistogram(prometheus.HistogramOpts{Name: "molecule_sweep_duration_seconds",
			Help: "Duration of sweeps.", Buckets: sweepBuckets}),
		sweepSuccess: gauge("molecule_sweep_last_success_timestamp_seconds", "Time of the last successful sweep; 0 if none succeeded since the start."),
	}
	p.objectDuration = factory.NewHistogramVec(prometheus.HistogramOpts{Name: "molecule_object_duration_seconds",
		Help: "Duration of object store operations, by operation; for a read, until the store answers.", Buckets: requestBuckets},
		[]string{"operation"})
	p.objectErrors = counters("molecule_object_errors_total", "Object store operations that failed, by operation.", "operation")
	for _, operation := range ObjectOperations {
		p.objectErrors.WithLabelValues(operation)
	}
	for _, state := range []string{stateAcked, stateExpired} { // exported as 0 from the start: rate() misses the first increase of a new series
		p.sweptFiles.WithLabelValues(state)
		p.sweptBytes.WithLabelValues(state)
	}
	factory.NewGaugeVec(prometheus.GaugeOpts{Name: "molecule_build_info", Help: "Always 1; the labels are the version of the binary and of Go."}, []string{"version", "goversion"}).
		WithLabelValues(o.Version, runtime.Version()).Set(1)
	gauge("molecule_pending_ttl_seconds", "Time after which an unacknowledged file expires, as configured.").Set(o.PendingTTL.Seconds())
	gauge("molecule_sweep_interval_seconds", "Time between two sweeps, as configured.").Set(o.SweepInterval.Seconds())
	gauge("molecule_spool_limit_bytes", "Maximum bytes that uploads in flight can reserve, as configured.").Set(float64(o.SpoolBytes))
	limits := factory.NewGaugeVec(prometheus.GaugeOpts{Name: "molecule_requests_in_flight_limit",
		Help: "Maximum number of concurrent requests, by operation, as configured."}, []string{"operation"})
	for operation, n := range o.Limits {
		limits.WithLabelValues(operation).Set(float64(n))
	}
	return p
}

// WatchPool adds database/sql's statistics of a connection pool, under the label db_name.
func (p *Platform) WatchPool(name string, db *sql.DB) {
	if p != nil {
		p.registry.MustRegister(collectors.NewDBStatsCollector(db, name))
	}
}

// Handler serves the metrics to Prometheus.
func (p *Platform) Handler() http.Handler {
	return promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// Gatherer returns the registry, for tests.
func (p *Platform) Gatherer() prometheus.Gatherer { return p.registry }
