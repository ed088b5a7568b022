// Package sweeper deletes acknowledged and expired files, old inbox rows, old events, and identities that nobody uses.
//
// Every replica runs a Sweeper. Replicas share the work: each batch skips what another replica is deleting. A Sweeper
// goes on after errors and panics, and holds no lock longer than one batch. The database's clock decides what has
// expired. The package holds no SQL: Files, Inbox and Events delete, and decide what a batch is.
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

	// batchPause leaves the disk to requests between two batches.
	batchPause = 50 * time.Millisecond

	// roundTimeout ends a sweep that still finds files, because they arrive as fast as they are deleted. The sweep is
	// reported, inbox rows get their turn, and the next sweep begins at once.
	roundTimeout = time.Minute

	// reclaimBytes is the number of deleted bytes after which Files.Reclaim is called; reclaimTimeout bounds the call.
	reclaimBytes   = 256 << 20
	reclaimTimeout = 10 * time.Minute
)

// Files deletes files; pendinguploads.Storage implements it.
type Files interface {
	Sweep(ctx context.Context, retention time.Duration) (pendinguploads.Swept, error)
	Sweepable(ctx context.Context, retention time.Duration) (pendinguploads.Swept, error)
	Reclaim(ctx context.Context) error
}

// Inbox deletes inbox rows; *activity.Inbox implements it.
type Inbox interface {
	Prune(ctx context.Context, retention, limit time.Duration) (int, bool, error)
	Prunable(ctx context.Context, retention, limit time.Duration) (int, error)
}

// Events deletes events; *events.Log implements it. Events are not counted: each is about a file that is counted.
type Events interface {
	Prune(ctx context.Context, retention time.Duration) (more bool, err error)
}

// Identities deletes registrations and tokens that nobody uses, and what tombstones need not keep; *workspaces.Store
// implements it. How long they are kept is its own matter.
type Identities interface {
	SweepIdentities(ctx context.Context) (n int, more bool, err error)
	SweepableIdentities(ctx context.Context) (int, error)
}

// Retention is how long files and rows are kept, and how often they are swept.
type Retention struct {
	Acked    time.Duration // files, after they were acknowledged
	Rows     time.Duration // inbox rows that their workspace has read past
	Unread   time.Duration // all other inbox rows
	Events   time.Duration // all events
	Interval time.Duration // between two sweeps, plus or minus 10 %
}

// Result is what a sweep deleted.
type Result struct {
	pendinguploads.Swept
	Rows       int
	Identities int
}

// Sweeper deletes in batches. Only one goroutine may use it at a time.
type Sweeper struct {
	files     Files
	inbox     Inbox
	events    Events
	ids       Identities // nil: not swept
	retention Retention
	log       *slog.Logger
	observe   func(Result, time.Duration, error)
	deleted   int64 // bytes since the last successful reclaim
}

// New returns a Sweeper. observe is called after every sweep of Run, and may be nil.
func New(
	files Files, inbox Inbox, events Events, retention Retention, log *slog.Logger, observe func(Result, time.Duration, error),
) *Sweeper {
	if observe == nil {
		observe = func(Result, time.Duration, error) {}
	}
	return &Sweeper{files: files, inbox: inbox, events: events, retention: retention, log: log, observe: observe}
}

// WithIdentities makes the Sweeper sweep identities too, and returns it.
func (s *Sweeper) WithIdentities(ids Identities) *Sweeper {
	s.ids = ids
	return s
}

// Run sweeps at once, and then at every interval until ctx is done.
func (s *Sweeper) Run(ctx context.Context) {
	for {
		start := time.Now()
		r, more, err := s.round(ctx, start.Add(roundTimeout))
		if ctx.Err() != nil {
			return
		}
		duration := time.Since(start)
		s.observe(r, duration, err)
		log := s.log.With("acked", r.Acked, "expired", r.Expired, "bytes", r.AckedBytes+r.ExpiredBytes, "rows", r.Rows, "identities", r.Identities, "duration", duration)
		switch {
		case err != nil:
			log.ErrorContext(ctx, "sweep failed; retrying at the next interval", "error", err)
		case r.Acked+r.Expired+r.Rows+r.Identities > 0:
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

// RunOnce sweeps once, until nothing is left to delete. It returns what was deleted, even with an error.
func (s *Sweeper) RunOnce(ctx context.Context) (Result, error) {
	r, _, err := s.round(ctx, time.Time{})
	return r, err
}

// round is one sweep: it deletes batches until nothing is left or the deadline has passed; a zero deadline is none. It
// reports whether there is more to delete. Rows are deleted even if the files fail.
func (s *Sweeper) round(ctx context.Context, deadline time.Time) (Result, bool, error) {
	var r Result
	var reclaimErr error
	moreFiles, filesErr := batches(ctx, deadline, "files", func(ctx context.Context) (bool, error) {
		swept, err := s.files.Sweep(ctx, s.retention.Acked)
		r.Acked += swept.Acked
		r.Expired += swept.Expired
		r.AckedBytes += swept.AckedBytes
		r.ExpiredBytes += swept.ExpiredBytes
		s.deleted += swept.AckedBytes + swept.ExpiredBytes
		return swept.More, err
	}, func() {
		if reclaimErr == nil { // after a failure the next sweep tries again
			reclaimErr = s.reclaim(ctx)
		}
	})
	moreRows, rowsErr := batches(ctx, deadline, "rows", func(ctx context.Context) (bool, error) {
		n, more, err := s.inbox.Prune(ctx, s.retention.Rows, s.retention.Unread)
		r.Rows += n
		return more, err
	}, func() {})
	moreIDs, idsErr := batches(ctx, deadline, "identities", func(ctx context.Context) (bool, error) {
		if s.ids == nil {
			return false, nil
		}
		n, more, err := s.ids.SweepIdentities(ctx)
		r.Identities += n
		return more, err
	}, func() {})
	moreEvents, eventsErr := batches(ctx, deadline, "events", func(ctx context.Context) (bool, error) {
		return s.events.Prune(ctx, s.retention.Events)
	}, func() {})
	return r, moreFiles || moreRows || moreIDs || moreEvents, errors.Join(filesErr, reclaimErr, rowsErr, idsErr, eventsErr)
}

// reclaim makes the space of deleted files available to new ones, once at least reclaimBytes were deleted.
func (s *Sweeper) reclaim(ctx context.Context) error {
	if s.deleted < reclaimBytes || ctx.Err() != nil {
		return nil
	}
	start := time.Now()
	if err := guard(ctx, reclaimTimeout, s.files.Reclaim); err != nil {
		return fmt.Errorf("sweeper: reclaim: %w", err)
	}
	s.log.InfoContext(ctx, "space reclaimed", "bytes", s.deleted, "duration", time.Since(start))
	s.deleted = 0
	return nil
}

// Due returns what RunOnce would delete now. It deletes nothing.
func (s *Sweeper) Due(ctx context.Context) (Result, error) {
	swept, err := s.files.Sweepable(ctx, s.retention.Acked)
	if err != nil {
		return Result{}, err
	}
	rows, err := s.inbox.Prunable(ctx, s.retention.Rows, s.retention.Unread)
	if err != nil || s.ids == nil {
		return Result{Swept: swept, Rows: rows}, err
	}
	ids, err := s.ids.SweepableIdentities(ctx)
	return Result{Swept: swept, Rows: rows, Identities: ids}, err
}

// batches calls batch until it reports that there is no more, it fails or the deadline has passed, and done after each
// success. It reports whether there is more.
func batches(ctx context.Context, deadline time.Time, kind string, batch func(context.Context) (bool, error), done func()) (bool, error) {
	for ctx.Err() == nil {
		var more bool
		err := guard(ctx, batchTimeout, func(ctx context.Context) (err error) {
			more, err = batch(ctx)
			return err
		})
		if err != nil {
			return false, fmt.Errorf("sweeper: %s: %w", kind, err)
		}
		done()
		if !more || !deadline.IsZero() && !time.Now().Before(deadline) {
			return more, nil
		}
		sleep(ctx, batchPause)
	}
	return true, ctx.Err()
}

// guard calls f with a timeout, and turns a panic into an error.
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

// jitter varies d by plus or minus 10 %, so that replicas started together do not keep sweeping together.
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
