package schema

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lib/pq"
)

// A statement that waits for the lock of a table makes all others wait behind it, for as long as a single
// reader holds the table. So a step waits for a moment, gives up what it has locked, lets the traffic through, and
// tries again.
var defaultPatience = patience{lock: 2 * time.Second, pause: time.Second, longestPause: 15 * time.Second, total: 10 * time.Minute}

type patience struct {
	lock                time.Duration // for one lock; others may wait that long
	pause, longestPause time.Duration // after the first try, twice that after the next, and so on
	total               time.Duration // after which no other try is begun
}

type options struct {
	say      func(string)
	patience patience
}

// An Option is for Up and Down.
type Option func(*options)

// Progress has say called with a sentence for each try that had to give up because of a lock.
func Progress(say func(sentence string)) Option { return func(o *options) { o.say = say } }

func newOptions(all []Option) options {
	o := options{say: func(string) {}, patience: defaultPatience}
	for _, option := range all {
		option(&o)
	}
	return o
}

// ErrLocked means that a step gave up, because other sessions did not release a table.
var ErrLocked = errors.New("schema: a table is locked")

const (
	sqlSetLockTimeout = `SELECT set_config('lock_timeout', $1, false), pg_backend_pid()`

	// sqlBlocker says what a session waits for, and which session it is that has it.
	sqlBlocker = `
SELECT coalesce(l.relation::regclass::text, l.locktype),
    coalesce((SELECT format('process %s (user %s, application %s, %s for %s)', a.pid, a.usename, coalesce(nullif(a.application_name, ''), 'unnamed'),
        a.state, date_trunc('second', clock_timestamp() - a.state_change))
    FROM pg_stat_activity a WHERE a.pid = ANY (pg_blocking_pids(l.pid)) ORDER BY a.xact_start LIMIT 1), 'another session')
FROM pg_locks l WHERE l.pid = $1 AND NOT l.granted LIMIT 1`
)

// retry calls try until it succeeds, fails otherwise than by a lock, or has had its time.
func (s *session) retry(ctx context.Context, try func() error) error {
	start, pause := time.Now(), s.patience.pause
	for n := 1; ; n++ {
		waited := s.watch(ctx)
		err := try()
		what := waited()
		var refused *pq.Error
		if !errors.As(err, &refused) || refused.Code != "55P03" { // lock_not_available
			return err
		}
		took := time.Since(start).Round(time.Second)
		if took+pause > s.patience.total {
			return fmt.Errorf("%w: gave up after %d tries in %s, waiting for a lock on %s; end that session and run it again", ErrLocked, n, took, what)
		}
		s.say(fmt.Sprintf("waiting for a lock on %s; try %d follows in %s", what, n+1, pause))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, s.patience.longestPause)
	}
}

// watch looks from another connection what the session waits for, until the function that it returns is
// called, which says what that was at last. It is for the operator only: a look that fails says nothing.
func (s *session) watch(ctx context.Context) func() string {
	what := "a table"
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(s.patience.lock / 4)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			var table, blocker string
			if s.db.QueryRowContext(ctx, sqlBlocker, s.pid).Scan(&table, &blocker) == nil {
				what = table + ", which " + blocker + " has"
			}
		}
	})
	return func() string {
		cancel()
		done.Wait()
		return what
	}
}

// limitLocks makes the statements of the session wait for a lock no longer than a try may.
func (s *session) limitLocks(ctx context.Context, db *sql.DB, o options) error {
	s.db, s.options = db, o
	var set string
	if err := s.conn.QueryRowContext(ctx, sqlSetLockTimeout, fmt.Sprintf("%dms", o.patience.lock.Milliseconds())).Scan(&set, &s.pid); err != nil {
		return fmt.Errorf("schema: limit the wait for locks: %w", err)
	}
	return nil
}
