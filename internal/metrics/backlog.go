package metrics

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// databaseAge is how old what is told of the database may be. However many ask, and however
	// often, it is asked once in this time.
	databaseAge = 10 * time.Second

	// databasePatience is how long a scrape waits for the database. Prometheus waits 10 s for all.
	databasePatience = 2 * time.Second

	// countTimeout is how long counting may take, countKept how old counts are told when it takes long or
	// fails: they have their time beside them.
	countTimeout = 30 * time.Second
	countKept    = 5 * time.Minute
)

// Backlog is what is staged and waits to be acknowledged, of all workspaces.
type Backlog struct {
	Files, Bytes int64
	Oldest       time.Duration // since its oldest file was staged; 0 if there is none

	Garbage int64 // objects in stores that wait to be deleted
}

var (
	descUp = prometheus.NewDesc("molecule_database_up",
		"1 if the database answered a trivial query within 2 seconds when it was last asked, at most 10 seconds ago; else 0.", nil, nil)
	descCounted = prometheus.NewDesc("molecule_backlog_timestamp_seconds",
		"When the unacknowledged files and the objects to delete were counted that are told; at most 5 minutes ago.", nil, nil)
	descFiles  = prometheus.NewDesc("molecule_unacked_files", "Files staged and not yet acknowledged or expired, in the whole database.", nil, nil)
	descBytes  = prometheus.NewDesc("molecule_unacked_bytes", "Bytes of the files staged and not yet acknowledged or expired, in the whole database.", nil, nil)
	descOldest = prometheus.NewDesc("molecule_unacked_oldest_age_seconds",
		"How long the oldest file has waited that is staged and not yet acknowledged or expired; 0 if there is none.", nil, nil)
	descGarbage = prometheus.NewDesc("molecule_garbage_objects", "Objects in stores that belong to no file any more and wait to be deleted.", nil, nil)
)

// WatchDatabase adds whether the database answers and, while it does, the backlog. answers asks it
// something trivial and read counts, each on a connection that uploads, polls and the other cannot use up:
// a count that takes long is no database that is away. Whether or not they heed their context, a
// scrape waits for each no longer than two seconds, and there is never more than one of each under way.
func (p *Platform) WatchDatabase(answers func(context.Context) error, read func(context.Context) (Backlog, error)) {
	if p != nil {
		p.backlog = newBacklog(answers, read)
		p.registry.MustRegister(p.backlog)
	}
}

// backlog is a collector that remembers for a while.
type backlog struct {
	up     *remembered[struct{}]
	counts *remembered[Backlog]
}

func newBacklog(answers func(context.Context) error, read func(context.Context) (Backlog, error)) *backlog {
	return &backlog{
		&remembered[struct{}]{timeout: databasePatience, kept: databaseAge, read: func(ctx context.Context) (struct{}, error) { return struct{}{}, answers(ctx) }},
		&remembered[Backlog]{timeout: countTimeout, kept: countKept, read: read},
	}
}

// Describe implements prometheus.Collector.
func (b *backlog) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descUp, descCounted, descFiles, descBytes, descOldest, descGarbage} {
		descs <- d
	}
}

// Collect implements prometheus.Collector. What is not known is left out: a 0 would look as if
// all had been delivered.
func (b *backlog) Collect(metrics chan<- prometheus.Metric) {
	tell := func(d *prometheus.Desc, v float64) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	if _, _, up := b.up.get(); !up {
		tell(descUp, 0)
		return
	}
	tell(descUp, 1)
	last, at, known := b.counts.get()
	if !known {
		return
	}
	tell(descCounted, float64(at.UnixMilli())/1000)
	tell(descFiles, float64(last.Files))
	tell(descBytes, float64(last.Bytes))
	tell(descOldest, last.Oldest.Seconds())
	tell(descGarbage, float64(last.Garbage))
}

// remembered is what was read of the database.
type remembered[T any] struct {
	read    func(context.Context) (T, error)
	timeout time.Duration // of a read
	kept    time.Duration // how old it is told if there is nothing newer

	mu    sync.Mutex
	last  T
	at    time.Time     // of last; zero: there is none that counts
	began time.Time     // of the read under way
	ended chan struct{} // nil: no read is under way
}

// get returns what was read at most databaseAge ago, or when it waited for it in vain, what is kept.
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
	ended, patience := r.ended, databasePatience-time.Since(r.began)
	r.mu.Unlock()

	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C: // a database that hangs; only the first scrape waits for it
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
