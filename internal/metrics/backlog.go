package metrics

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// databaseAge is the maximum age of what is reported about the database. It is asked at most once in this time, however
	// many scrapes there are.
	databaseAge = 10 * time.Second

	// databaseTimeout bounds a scrape's wait for the database. Prometheus' own timeout for the whole scrape is 10 s.
	databaseTimeout = 2 * time.Second

	// countTimeout bounds a count. countKept is how long an old count is reported while a new one takes long or fails; its
	// time is reported beside it.
	countTimeout = 30 * time.Second
	countKept    = 5 * time.Minute
)

// Backlog is what is staged and neither acknowledged nor expired, in all workspaces.
type Backlog struct {
	Files, Bytes int64
	Oldest       time.Duration // age of the oldest file; 0 if there is none

	Garbage int64 // objects that no file refers to any more and that wait for deletion
}

var (
	descUp = prometheus.NewDesc("molecule_database_up",
		"1 if the database answered a trivial query within 2 seconds, at most 10 seconds ago; else 0.", nil, nil)
	descCounted = prometheus.NewDesc("molecule_backlog_timestamp_seconds",
		"Unix time of the count of unacknowledged files and garbage objects; at most 5 minutes ago.", nil, nil)
	descFiles  = prometheus.NewDesc("molecule_unacked_files", "Files staged and neither acknowledged nor expired, in the whole database.", nil, nil)
	descBytes  = prometheus.NewDesc("molecule_unacked_bytes", "Bytes of files staged and neither acknowledged nor expired, in the whole database.", nil, nil)
	descOldest = prometheus.NewDesc("molecule_unacked_oldest_age_seconds",
		"Age of the oldest file staged and neither acknowledged nor expired; 0 if there is none.", nil, nil)
	descGarbage = prometheus.NewDesc("molecule_garbage_objects", "Objects in the object store that no file refers to any more and that wait for deletion.", nil, nil)
)

// WatchDatabase adds molecule_database_up and, while the database answers, the backlog. answers runs a trivial query and
// read counts, each on a connection that uploads, polls and the other cannot exhaust: a slow count does not mean that the
// database is down. A scrape waits at most two seconds for each, even if they ignore their context, and at most one of
// each runs at a time.
func (p *Platform) WatchDatabase(answers func(context.Context) error, read func(context.Context) (Backlog, error)) {
	if p != nil {
		p.backlog = newBacklog(answers, read)
		p.registry.MustRegister(p.backlog)
	}
}

// backlog is a collector that caches its values for databaseAge.
type backlog struct {
	up     *remembered[struct{}]
	counts *remembered[Backlog]
}

func newBacklog(answers func(context.Context) error, read func(context.Context) (Backlog, error)) *backlog {
	return &backlog{
		&remembered[struct{}]{timeout: databaseTimeout, kept: databaseAge, read: func(ctx context.Context) (struct{}, error) { return struct{}{}, answers(ctx) }},
		&remembered[Backlog]{timeout: countTimeout, kept: countKept, read: read},
	}
}

// Describe implements prometheus.Collector.
func (b *backlog) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descUp, descCounted, descFiles, descBytes, descOldest, descGarbage} {
		descs <- d
	}
}

// Collect implements prometheus.Collector. While the database does not answer, the backlog is left out: a 0 would mean
// that every file had been delivered.
func (b *backlog) Collect(metrics chan<- prometheus.Metric) {
	report := func(d *prometheus.Desc, v float64) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	if _, _, up := b.up.get(); !up {
		report(descUp, 0)
		return
	}
	report(descUp, 1)
	last, at, ok := b.counts.get()
	if !ok {
		return
	}
	report(descCounted, float64(at.UnixMilli())/1000)
	report(descFiles, float64(last.Files))
	report(descBytes, float64(last.Bytes))
	report(descOldest, last.Oldest.Seconds())
	report(descGarbage, float64(last.Garbage))
}

// remembered caches what was read from the database.
type remembered[T any] struct {
	read    func(context.Context) (T, error)
	timeout time.Duration // of a read
	kept    time.Duration // maximum age that is reported if there is nothing newer

	mu    sync.Mutex
	last  T
	at    time.Time     // when last was read; zero: last is not valid
	began time.Time     // start of the running read
	ended chan struct{} // closed when the running read ends; nil: no read is running
}

// get returns what was read at most databaseAge ago. If a new read does not end in time, it returns an older value of at
// most r.kept.
func (r *remembered[T]) get() (last T, at time.Time, ok bool) {
	r.mu.Lock()
	if r.younger(databaseAge) {
		defer r.mu.Unlock()
		return r.last, r.at, true
	}
	if r.ended == nil {
		r.began, r.ended = time.Now(), make(chan struct{})
		go r.refresh(r.ended)
	}
	ended, remaining := r.ended, databaseTimeout-time.Since(r.began)
	r.mu.Unlock()

	timer := time.NewTimer(remaining)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C: // the database hangs; only the scrape that started the read waits for it
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last, r.at, r.younger(r.kept)
}

func (r *remembered[T]) younger(age time.Duration) bool {
	return !r.at.IsZero() && time.Since(r.at) < age
}

func (r *remembered[T]) refresh(ended chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), r.timeout)
	defer cancel()
	last, err := r.read(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.last, r.at = last, time.Now()
	} else if r.kept <= databaseAge {
		r.at = time.Time{}
	}
	r.ended = nil
	close(ended)
}
