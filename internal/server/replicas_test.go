package server_test

import (
	"slices"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// replicas are two platforms on one database that hear each other.
func replicas(t *testing.T) (a, b *servertest.Platform, w servertest.Workspace) {
	a = servertest.Start(t)
	b = servertest.Start(t, func(s *config.Settings) { s.DatabaseURL = a.Config.DatabaseURL })
	w = a.Create(t, "poll", "")
	const listeners = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%' AND state = 'idle'`
	for begun, n := time.Now(), 0; n < 2; time.Sleep(10 * time.Millisecond) {
		if err := a.DB.QueryRowContext(t.Context(), listeners).Scan(&n); err != nil || time.Since(begun) > testTimeout {
			t.Fatalf("%d replicas listen, %v", n, err)
		}
	}
	return a, b, w
}

// median logs how long something took, and returns the median.
func median(t *testing.T, what string, took []time.Duration) time.Duration {
	slices.Sort(took)
	t.Logf("%s: p50 %v, max %v", what, took[len(took)/2].Round(100*time.Microsecond), took[len(took)-1].Round(100*time.Microsecond))
	return took[len(took)/2]
}

// What happens at one replica is known at the other at once. Planted: nothing announced to other
// replicas, which then look for themselves.
func TestReplicas_WakeEachOther(t *testing.T) {
	t.Parallel()
	a, b, w := replicas(t)
	s := listen(t, b, w.ID, w.Token, "")
	say(t, a, w, "first")
	last := first(t, a, w, "").ID
	s.next()
	var polls, events []time.Duration
	for start := time.Now(); len(polls) < 20 && time.Since(start) < 15*time.Second; {
		poll := hold(t, b, w, w.Token, "wait=55&since_id="+last)
		time.Sleep(50 * time.Millisecond)
		begun := time.Now()
		f := stage(t, a, w, "a")[0]
		r, _ := poll.end(t)
		polls = append(polls, time.Since(begun))
		var rows []row
		r.JSON(t, &rows)
		last = rows[0].ID
		s.next()
		begun = time.Now()
		ack(t, a, w, f.ID())
		if e := s.next(); e.Kind != "acked" || e.FileID != f.ID() {
			t.Fatalf("event %s", e)
		}
		events = append(events, time.Since(begun))
	}
	if p := median(t, "POST at one replica to the held poll's answer at another", polls); p > 500*time.Millisecond {
		t.Errorf("polls: %v", p)
	}
	if p := median(t, "ack at one replica to the event at another", events); p > 500*time.Millisecond {
		t.Errorf("events: %v", p)
	}
}

// News that is lost costs seconds, and nothing else. Planted: waiters that never look by
// themselves.
func TestReplicas_LostNewsCostsSeconds(t *testing.T) {
	t.Parallel()
	a, b, w := replicas(t)
	s := listen(t, b, w.ID, w.Token, "")
	say(t, a, w, "first")
	last := first(t, a, w, "").ID
	s.next()
	for range 3 {
		poll := hold(t, b, w, w.Token, "wait=55&since_id="+last)
		poll.isHeld(t)
		// The listening connections die, and what is announced right then is heard by nobody.
		exec(t, a, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'`)
		begun := time.Now()
		say(t, a, w, "unheard")
		r, _ := poll.end(t)
		took := time.Since(begun)
		var rows []row
		if r.JSON(t, &rows); len(rows) != 1 || took > 6*time.Second {
			t.Errorf("%s after %v", r.Body, took)
		}
		last = rows[0].ID
		if e := s.next(); e.Method != "unheard" || time.Since(begun) > 6*time.Second {
			t.Errorf("event %s after %v", e, time.Since(begun))
		}
		t.Logf("without news: poll after %v, event after %v", took.Round(time.Millisecond), time.Since(begun).Round(time.Millisecond))
	}
}
