package metrics

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// backlogAge is the maximum age of the reported backlog. The database is queried at most once in this time, however
	// many scrapes there are.
	backlogAge = 10 * time.Second

	// backlogTimeout bounds a scrape's wait for the database. Prometheus' own timeout for the whole scrape is 10 s.
	backlogTimeout = 2 * time.Second
)

// Backlog is what is staged and neither acknowledged nor expired, in all workspaces.
type Backlog struct {
	Files, Bytes int64
	Oldest       time.Duration // age of the oldest file; 0 if there is none

	Garbage int64 // objects that no file refers to any more and that wait for deletion
}

var (
	descUp = prometheus.NewDesc("molecule_database_up",
		"1 if the database answered the last query, at most 10 seconds ago; else 0.", nil, nil)
	descFiles  = prometheus.NewDesc("molecule_unacked_files", "Files staged and neither acknowledged nor expired, in the whole database.", nil, nil)
	descBytes  = prometheus.NewDesc("molecule_unacked_bytes", "Bytes of files staged and neither acknowledged nor expired, in the whole database.", nil, nil)
	descOldest = prometheus.NewDesc("molecule_unacked_oldest_age_seconds",
		"Age of the oldest file staged and neither acknowledged nor expired; 0 if there is none.", nil, nil)
	descGarbage = prometheus.NewDesc("molecule_garbage_objects", "Objects in the object store that no file refers to any more and that wait for deletion.", nil, nil)
)

// WatchDatabase adds molecule_database_up and, while the database answers, the backlog. read must use a connection that
// uploads and polls cannot exhaust. A scrape waits at most two seconds for read, even if read ignores its context, and
// at most one read runs at a time.
func (p *Platform) WatchDatabase(read func(context.Context) (Backlog, error)) {
	if p != nil {
		p.backlog = &backlog{read: read, now: time.Now, timeout: backlogTimeout}
		p.registry.MustRegister(p.backlog)
	}
}

// backlog is a collector that caches its values for backlogAge.
type backlog struct {
	read    func(context.Context) (Backlog, error)
	now     func() time.Time
	timeout time.Duration

	mu    sync.Mutex
	last  Backlog
	at    time.Time     // when last was read; zero: last is not valid
	began time.Time     // start of the running read
	ended chan struct{} // closed when the running read ends; nil: no read is running
}

// Describe implements prometheus.Collector.
func (b *backlog) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descUp, descFiles, descBytes, descOldest, descGarbage} {
		descs <- d
	}
}

// Collect implements prometheus.Collector. While the database does not answer, the backlog is left out: a 0 would mean
// that every file had been delivered.
func (b *backlog) Collect(metrics chan<- prometheus.Metric) {
	last, up := b.get()
	report := func(d *prometheus.Desc, v float64) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	if !up {
		report(descUp, 0)
		return
	}
	report(descUp, 1)
	report(descFiles, float64(last.Files))
	report(descBytes, float64(last.Bytes))
	report(descOldest, last.Oldest.Seconds())
	report(descGarbage, float64(last.Garbage))
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
	ended, remaining := b.ended, b.timeout-b.now().Sub(b.began)
	b.mu.Unlock()

	timer := time.NewTimer(remaining)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C: // the database hangs; only the scrape that started the read waits for it
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
