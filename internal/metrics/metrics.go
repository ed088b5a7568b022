// Package metrics counts and times what the platform does, for Prometheus.
//
// Platform has a method for each thing that is counted, in the words of the domain; who calls
// them knows nothing of Prometheus. All of them are safe for concurrent use, and do nothing on a
// nil *Platform, so that tests and commands need none.
//
// Names follow the conventions of Prometheus and begin with molecule_, but for what the client
// library brings: go_ and process_ for the process, go_sql_ for the pools. Labels have few
// values: routes, methods, codes of refusals. Never a workspace, a file or anything that clients
// choose, for each value costs memory until the process ends.
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

// Options are what a dashboard compares the metrics with.
type Options struct {
	Version       string        // of the binary
	PendingTTL    time.Duration // how long a file waits for its ack
	SweepInterval time.Duration
	Limits        map[string]int // how many requests of an operation are admitted at once
	SpoolBytes    int64          // that uploads in flight may hold together
	SpoolDir      string         // folder of temporary files; "" is the system's
}

// Platform is the metrics of one platform.
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

// The buckets of durations, in seconds. Requests take from a millisecond (an ack) to minutes (a
// large file on a slow line); a file waits for its ack between a moment and a day.
var (
	requestBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300}
	ackBuckets     = []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600}
	sweepBuckets   = []float64{.01, .05, .1, .5, 1, 5, 10, 30, 60, 300}
)

// ObjectOperations are what is done to objects.
var ObjectOperations = []string{"write", "read", "delete", "sign"}

// States of a swept file.
const (
	stateAcked   = "acked"
	stateExpired = "expired"
)

// New returns the metrics of a platform that has just started. They are in a registry of their
// own, so that a process may have several.
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
		requests: counters("molecule_http_requests_total", "Requests answered, by route, method and class of status.", "route", "method", "status"),
		inFlight: factory.NewGaugeVec(prometheus.GaugeOpts{Name: "molecule_requests_in_flight",
			Help: "Requests being answered, by operation; wait and stream are those that are held until there is news."}, []string{"operation"}),
		duration: factory.NewHistogramVec(prometheus.HistogramOpts{Name: "molecule_request_duration_seconds",
			Help: "How long requests took that succeeded, by operation.", Buckets: requestBuckets}, []string{"operation"}),
		refusals: counters("molecule_refusals_total", "Requests refused or failed, by route and the code of the answer.", "route", "code"),

		stagedFiles:  counter("molecule_staged_files_total", "Files staged."),
		stagedBytes:  counter("molecule_staged_bytes_total", "Bytes of the files staged."),
		fetchedFiles: counter("molecule_fetched_files_total", "Files fetched to their end for the first time."),
		fetchedBytes: counter("molecule_fetched_bytes_total", "Bytes of the files fetched to their end for the first time."),
		sentBytes:    counter("molecule_content_sent_bytes_total", "Bytes of contents sent, ranges and repetitions included."),
		ackedFiles:   counter("molecule_acked_files_total", "Files acknowledged."),
		ackedBytes:   counter("molecule_acked_bytes_total", "Bytes of the files acknowledged."),
		ackLatency: factory.NewHistogram(prometheus.HistogramOpts{Name: "molecule_staged_to_acked_seconds",
			Help: "How long files waited from being staged to being acknowledged, by the database's clock.", Buckets: ackBuckets}),
		replayed:      counter("molecule_replayed_uploads_total", "Uploads answered from an Idempotency-Key, without staging anything."),
		refusedBytes:  counters("molecule_refused_upload_bytes_total", "Bytes taken off the wire for uploads that were refused then, by the code of the answer.", "code"),
		spooled:       gauge("molecule_spooled_bytes", "Bytes of uploads in flight that were taken off the wire, into memory or temporary files."),
		spoolReserved: gauge("molecule_spool_reserved_bytes", "Bytes for which room was taken by uploads in flight, whether or not they have come."),

		sweptFiles:  counters("molecule_swept_files_total", "Files deleted by this replica, by whether they were acked or had expired unacknowledged.", "state"),
		sweptBytes:  counters("molecule_swept_bytes_total", "Bytes of the files deleted by this replica.", "state"),
		sweptRows:   counter("molecule_swept_inbox_rows_total", "Inbox rows deleted by this replica."),
		sweepErrors: counter("molecule_sweep_errors_total", "Rounds of the sweep that failed."),
		sweepDuration: factory.NewHistogram(prometheus.HistogramOpts{Name: "molecule_sweep_duration_seconds",
			Help: "How long rounds of the sweep took.", Buckets: sweepBuckets}),
		sweepSuccess: gauge("molecule_sweep_last_success_timestamp_seconds", "When a round of the sweep last succeeded; 0 if none has yet."),
	}
	p.objectDuration = factory.NewHistogramVec(prometheus.HistogramOpts{Name: "molecule_object_duration_seconds",
		Help: "How long operations of the stores of objects took, by operation; for a read, until its first byte could come.", Buckets: requestBuckets},
		[]string{"operation"})
	p.objectErrors = counters("molecule_object_errors_total", "Operations of the stores of objects that failed, by operation.", "operation")
	for _, operation := range ObjectOperations {
		p.objectErrors.WithLabelValues(operation)
	}
	for _, state := range []string{stateAcked, stateExpired} { // 0 is another thing than nothing
		p.sweptFiles.WithLabelValues(state)
		p.sweptBytes.WithLabelValues(state)
	}
	factory.NewGaugeVec(prometheus.GaugeOpts{Name: "molecule_build_info", Help: "1, for the labels."}, []string{"version", "goversion"}).
		WithLabelValues(o.Version, runtime.Version()).Set(1)
	gauge("molecule_pending_ttl_seconds", "How long a file waits for its ack before it expires, as configured.").Set(o.PendingTTL.Seconds())
	gauge("molecule_sweep_interval_seconds", "Time between two rounds of the sweep, as configured.").Set(o.SweepInterval.Seconds())
	gauge("molecule_spool_limit_bytes", "For how many bytes uploads in flight can take room, as configured.").Set(float64(o.SpoolBytes))
	limits := factory.NewGaugeVec(prometheus.GaugeOpts{Name: "molecule_requests_in_flight_limit",
		Help: "How many requests of an operation are admitted at once, as configured."}, []string{"operation"})
	for operation, n := range o.Limits {
		limits.WithLabelValues(operation).Set(float64(n))
	}
	return p
}

// WatchPool adds what database/sql knows of a pool of connections.
func (p *Platform) WatchPool(name string, db *sql.DB) {
	if p != nil {
		p.registry.MustRegister(collectors.NewDBStatsCollector(db, name))
	}
}

// Handler answers a scrape.
func (p *Platform) Handler() http.Handler {
	return promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// Gatherer is for tests that look at the metrics themselves.
func (p *Platform) Gatherer() prometheus.Gatherer { return p.registry }
