package metrics

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// backlogAge is how old what is told of the database may be. However many ask, and however
	// often, it is asked once in this time.
	backlogAge = 10 * time.Second

	// backlogTimeout is how long a scrape waits for the database. Prometheus waits 10 s for all.
	backlogTimeout = 2 * time.Second
)

// Backlog is what is staged and waits to be acknowledged, of all workspaces.
type Backlog struct {
	Files, Bytes int64
	Oldest       time.Duration // since its oldest file was staged; 0 if there is none

	Garbage int64 // objects in stores that wait to be deleted
}

var (
	descUp = prometheus.NewDesc("molecule_database_up",
		"1 if the database answered when it was last asked, at most 10 seconds ago; else 0.", nil, nil)
	descFiles  = prometheus.NewDesc("molecule_unacked_files", "Files staged and not yet acknowledged or expired, in the whole database.", nil, nil)
	descBytes  = prometheus.NewDesc("molecule_unacked_bytes", "Bytes of the files staged and not yet acknowledged or expired, in the whole database.", nil, nil)
	descOldest = prometheus.NewDesc("molecule_unacked_oldest_age_seconds",
		"How long the oldest file has waited that is staged and not yet acknowledged or expired; 0 if there is none.", nil, nil)
	descGarbage = prometheus.NewDesc("molecule_garbage_objects", "Objects in stores that belong to no file any more and wait to be deleted.", nil, nil)
)

// WatchDatabase adds whether the database answers and, while it does, the backlog. read asks it,
// on a connection that uploads and polls cannot use up. Whether or not read heeds its context, a
// scrape waits for it no longer than two seconds, and there is never more than one read under way.
func (p *Platform) WatchDatabase(read func(context.Context) (Backlog, error)) {
	if p != nil {
		p.backlog = &backlog{read: read, now: time.Now, timeout: backlogTimeout}
		p.registry.MustRegister(p.backlog)
	}
}

// backlog is a collector that remembers for a while.
type backlog struct {
	read    func(context.Context) (Backlog, error)
	now     func() time.Time
	timeout time.Duration

	mu    sync.Mutex
	last  Backlog
	at    time.Time     // of last; zero: there is none that counts
	began time.Time     // of the read under way
	ended chan struct{} // nil: no read is under way
}

// Describe implements prometheus.Collector.
func (b *backlog) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descUp, descFiles, descBytes, descOldest, descGarbage} {
		descs <- d
	}
}

// Collect implements prometheus.Collector. What is not known is left out: a 0 would look as if
// all had been delivered.
func (b *backlog) Collect(metrics chan<- prometheus.Metric) {
	last, up := b.get()
	tell := func(d *prometheus.Desc, v float64) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	if !up {
		tell(descUp, 0)
		return
	}
	tell(descUp, 1)
	tell(descFiles, float64(last.Files))
	tell(descBytes, float64(last.Bytes))
	tell(descOldest, last.Oldest.Seconds())
	tell(descGarbage, float64(last.Garbage))
}

func (b *backlog) get() (Backlog, bool) {
	b.mu.Lock()
	if b.fresh() {
		defer b.mu.Unlock()
		return b.last, true
	}
	if b.ended == nil {
		b.began, b.ended = b.now(), make(chan struct{})
		go b.refresh(b.ended)
	}
	ended, patience := b.ended, b.timeout-b.now().Sub(b.began)
	b.mu.Unlock()

	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C: // a database that hangs; only the first scrape waits for it
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last, b.fresh()
}

func (b *backlog) fresh() bool { return !b.at.IsZero() && b.now().Sub(b.at) < backlogAge }

func (b *backlog) refresh(ended chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), b.timeout)
	defer cancel()
	last, err := b.read(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last, b.at = last, b.now()
	if err != nil {
		b.at = time.Time{}
	}
	b.ended = nil
	close(ended)
}
