package metrics

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// scrape returns the gauges of the database, by name.
func scrape(t *testing.T, b *backlog) map[string]float64 {
	t.Helper()
	collected := make(chan prometheus.Metric, 10)
	b.Collect(collected)
	close(collected)
	values := map[string]float64{}
	for m := range collected {
		var out dto.Metric
		if err := m.Write(&out); err != nil {
			t.Error(err)
		}
		for name, d := range map[string]*prometheus.Desc{"up": descUp, "counted": descCounted, "files": descFiles, "bytes": descBytes, "oldest": descOldest} {
			if m.Desc() == d {
				values[name] = out.GetGauge().GetValue()
			}
		}
	}
	return values
}

// watch returns a backlog of a database that answers if it can be read.
func watch(read func(context.Context) (Backlog, error)) *backlog {
	return newBacklog(func(ctx context.Context) error { _, err := read(ctx); return err }, read)
}

func answers(context.Context) error { return nil }

// Planted faults: no cache; a cache that never expires; one read per scrape.
func TestBacklog_IsReadOnceInTenSecondsHoweverManyScrapes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int64
		b := newBacklog(answers, func(context.Context) (Backlog, error) {
			time.Sleep(time.Second)
			return Backlog{Files: reads.Add(1), Bytes: 7, Oldest: 90 * time.Second}, nil
		})
		for round := 1.0; round <= 3; round++ {
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					for range 8 {
						got := scrape(t, b)
						if got["up"] != 1 || got["files"] != round || got["bytes"] != 7 || got["oldest"] != 90 {
							t.Errorf("round %v: %v", round, got)
						}
						time.Sleep(time.Second)
					}
				})
			}
			wg.Wait()
			time.Sleep(databaseAge)
		}
		if n := reads.Load(); n != 3 {
			t.Errorf("%d reads, want 3", n)
		}
	})
}

// Planted faults: the last values reported while the database is down; a failure that is cached.
func TestBacklog_IsLeftOutWhileTheDatabaseIsDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var err error
		b := watch(func(context.Context) (Backlog, error) { return Backlog{Files: 3}, err })
		if got := scrape(t, b); got["up"] != 1 || got["files"] != 3 {
			t.Errorf("before: %v", got)
		}
		err = errors.New("connection refused")
		time.Sleep(databaseAge)
		if got := scrape(t, b); len(got) != 1 || got["up"] != 0 {
			t.Errorf("down: %v, want up 0 and nothing else", got)
		}
		err = nil
		if got := scrape(t, b); got["up"] != 1 || got["files"] != 3 {
			t.Errorf("back: %v", got)
		}
	})
}

// lib/pq goes on reading from a stopped server after its context has ended. Planted faults: a scrape that waits for the
// read; one read per scrape; no timeout for the read.
func TestBacklog_HangingDatabaseDelaysOneScrapeByTwoSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int64
		resume := make(chan struct{})
		b := newBacklog(func(ctx context.Context) error {
			reads.Add(1)
			if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > databaseTimeout {
				t.Error("the read has no deadline")
			}
			<-resume
			return nil
		}, func(context.Context) (Backlog, error) { return Backlog{Files: 5}, nil })
		for i := range 5 {
			start := time.Now()
			got := scrape(t, b)
			if len(got) != 1 || got["up"] != 0 {
				t.Errorf("scrape %d: %v", i, got)
			}
			want := time.Duration(0)
			if i == 0 {
				want = databaseTimeout
			}
			if took := time.Since(start); took != want {
				t.Errorf("scrape %d took %s, want %s", i, took, want)
			}
			time.Sleep(time.Minute)
		}
		if n := reads.Load(); n != 1 {
			t.Errorf("%d reads are running, want 1", n)
		}
		close(resume)
		synctest.Wait()
		if got := scrape(t, b); got["up"] != 1 || got["files"] != 5 {
			t.Errorf("back: %v", got)
		}
	})
}

// A count that takes long says nothing of whether the database answers: the last one is told with its time, for five minutes.
// Planted: up by the count; a count that is cut off after two seconds; the last count told for ever, or with the time of the scrape.
func TestBacklog_ASlowCountIsNoDatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		takes, files := time.Duration(0), int64(1)
		var err error
		b := newBacklog(answers, func(ctx context.Context) (Backlog, error) {
			select {
			case <-time.After(takes):
				return Backlog{Files: files}, err
			case <-ctx.Done():
				return Backlog{}, ctx.Err()
			}
		})
		want := func(files float64, counted time.Time, took time.Duration) {
			t.Helper()
			start := time.Now()
			got := scrape(t, b)
			if got["up"] != 1 || got["files"] != files || got["counted"] != float64(counted.UnixMilli())/1000 || time.Since(start) != took {
				t.Errorf("%v after %s, want %v files counted at %v after %s", got, time.Since(start), files, counted.Unix(), took)
			}
		}
		first := time.Now()
		want(1, first, 0)
		time.Sleep(databaseAge)
		takes, files = 20*time.Second, 2
		want(1, first, databaseTimeout)
		want(1, first, 0)
		time.Sleep(20 * time.Second)
		second := time.Now().Add(-databaseTimeout)
		want(2, second, 0)
		err = errors.New("canceled by the statement timeout")
		time.Sleep(countKept - 30*time.Second)
		want(2, second, databaseTimeout)
		time.Sleep(time.Minute)
		if got := scrape(t, b); len(got) != 1 || got["up"] != 1 {
			t.Errorf("%v, want up and no counts that old", got)
		}
		time.Sleep(countTimeout) // the last one ends
	})
}
