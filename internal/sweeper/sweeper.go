// Package sweeper deletes what is over: files that were acknowledged or have expired, old rows of
// inboxes, and old events.
//
// It runs in every replica; they share the work, for each takes only what no other is deleting.
// It goes on after errors and panics, and never holds a lock for longer than a batch. What is
// over is decided by the database's clock. It does not know how files, rows and events are kept: that is
// the business of those it calls.
package sweeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

const (
	// batchTimeout bounds one batch.
	batchTimeout = 30 * time.Second

	// batchPause lets others at the disk between two batches.
	batchPause = 50 * time.Millisecond

	// roundTime is after how long a round is told of and another begun, if there is no end to it:
	// files may come as fast as they go.
	roundTime = time.Minute

	// reclaimBytes is after how much that was deleted its room is reclaimed, reclaimTimeout how
	// long that may take.
	reclaimBytes   = 256 << 20
	reclaimTimeout = 10 * time.Minute
)

// Files deletes files; pendinguploads.Storage does.
type Files interface {
	Sweep(ctx context.Context, retention time.Duration) (pendinguploads.Swept, error)
	Sweepable(ctx context.Context, retention time.Duration) (pendinguploads.Swept, error)
	Reclaim(ctx context.Context) error
}

// Inbox deletes rows; *activity.Inbox does.
type Inbox interface {
	Prune(ctx context.Context, retention, limit time.Duration) (int, bool, error)
	Prunable(ctx context.Context, retention, limit time.Duration) (int, error)
}

// Events deletes events; *events.Log does. They count as nothing: each is about a file that is counted.
type Events interface {
	Prune(ctx context.Context, retention time.Duration) (more bool, err error)
}

// Retention says how long what is over is kept.
type Retention struct {
	Acked    time.Duration // files, after they were acknowledged
	Rows     time.Duration // inbox rows that their workspace has read past
	Unread   time.Duration // inbox rows in any case
	Events   time.Duration // events, in any case
	Interval time.Duration // between two rounds, give or take a tenth
}

// Result is what a round deleted.
type Result struct {
	pendinguploads.Swept
	Rows int
}

// Sweeper sweeps.
type Sweeper struct {
	files     Files
	inbox     Inbox
	events    Events
	retention Retention
	log       *slog.Logger
	observe   func(Result, time.Duration, error)
	freed     int64 // bytes deleted since the last reclaim
}

// New returns a sweeper. observe is told of every round, and may be nil.
func New(
	files Files, inbox Inbox, events Events, retention Retention, log *slog.Logger, observe func(Result, time.Duration, error),
) *Sweeper {
	if observe == nil {
		observe = func(Result, time.Duration, error) {}
	}
	return &Sweeper{files: files, inbox: inbox, events: events, retention: retention, log: log, observe: observe}
}

// Run sweeps at once, and then again and again until ctx is done.
func (s *Sweeper) Run(ctx context.Context) {
	for {
		start := time.Now()
		r, more, err := s.round(ctx, start.Add(roundTime))
		if ctx.Err() != nil {
			return
		}
		took := time.Since(start)
		s.observe(r, took, err)
		log := s.log.With("acked", r.Acked, "expired", r.Expired, "bytes", r.AckedBytes+r.ExpiredBytes, "rows", r.Rows, "duration", took)
		switch {
		case err != nil:
			log.ErrorContext(ctx, "sweep failed; it is tried again", "error", err)
		case r.Acked+r.Expired+r.Rows > 0:
			log.InfoContext(ctx, "swept")
		}
		pause := jitter(s.retention.Interval)
		if more {
			pause = batchPause
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// RunOnce deletes all that is over now, batch after batch, and returns what it deleted, also
// when it fails. It is not for several goroutines at once.
func (s *Sweeper) RunOnce(ctx context.Context) (Result, error) {
	r, _, err := s.round(ctx, time.Time{})
	return r, err
}

// round deletes what is over, until the time is over, if there is one, and tells whether there is
// more. What fails with files does not keep it from the rows, nor what never ends.
func (s *Sweeper) round(ctx context.Context, until time.Time) (Result, bool, error) {
	var r Result
	var room error
	moreFiles, files := batches(ctx, until, "files", func(ctx context.Context) (bool, error) {
		swept, err := s.files.Sweep(ctx, s.retention.Acked)
		r.Acked += swept.Acked
		r.Expired += swept.Expired
		r.AckedBytes += swept.AckedBytes
		r.ExpiredBytes += swept.ExpiredBytes
		s.freed += swept.AckedBytes + swept.ExpiredBytes
		return swept.More, err
	}, func() {
		if room == nil { // once it has failed, it is for the next round
			room = s.reclaim(ctx)
		}
	})
	moreRows, rows := batches(ctx, until, "rows", func(ctx context.Context) (bool, error) {
		n, more, err := s.inbox.Prune(ctx, s.retention.Rows, s.retention.Unread)
		r.Rows += n
		return more, err
	}, func() {})
	moreEvents, events := batches(ctx, until, "events", func(ctx context.Context) (bool, error) {
		return s.events.Prune(ctx, s.retention.Events)
	}, func() {})
	return r, moreFiles || moreRows || moreEvents, errors.Join(files, room, rows, events)
}

// reclaim gives the room of files to new ones, once it is much.
func (s *Sweeper) reclaim(ctx context.Context) error {
	if s.freed < reclaimBytes || ctx.Err() != nil {
		return nil
	}
	start := time.Now()
	if err := guard(ctx, reclaimTimeout, s.files.Reclaim); err != nil {
		return fmt.Errorf("sweeper: room: %w", err)
	}
	s.log.InfoContext(ctx, "room reclaimed", "bytes", s.freed, "duration", time.Since(start))
	s.freed = 0
	return nil
}

// Due tells what RunOnce would delete now, and deletes nothing.
func (s *Sweeper) Due(ctx context.Context) (Result, error) {
	swept, err := s.files.Sweepable(ctx, s.retention.Acked)
	if err != nil {
		return Result{}, err
	}
	rows, err := s.inbox.Prunable(ctx, s.retention.Rows, s.retention.Unread)
	return Result{Swept: swept, Rows: rows}, err
}

// batches calls batch until it says that there is no more or the time is over, and after each
// that succeeded done. It tells whether there is more.
func batches(ctx context.Context, until time.Time, what string, batch func(context.Context) (bool, error), done func()) (bool, error) {
	for ctx.Err() == nil {
		var more bool
		err := guard(ctx, batchTimeout, func(ctx context.Context) (err error) {
			more, err = batch(ctx)
			return err
		})
		if err != nil {
			return false, fmt.Errorf("sweeper: %s: %w", what, err)
		}
		done()
		if !more || !until.IsZero() && !time.Now().Before(until) {
			return more, nil
		}
		sleep(ctx, batchPause)
	}
	return true, ctx.Err()
}

// guard gives f its time, and makes an error of its panic.
func guard(ctx context.Context, timeout time.Duration, f func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return f(ctx)
}

// jitter keeps replicas that were started together from sweeping together for ever.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d))
}

// sleep returns false if ctx is done first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
