package sweeper_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/sweeper"
)

var (
	errFiles = errors.New("the files' disk is on fire")
	errRows  = errors.New("the rows' disk is on fire")
	errGone  = errors.New("the events' disk is on fire")

	retention = sweeper.Retention{Acked: time.Hour, Rows: 7 * 24 * time.Hour, Unread: 30 * 24 * time.Hour, Events: 24 * time.Hour, Interval: 5 * time.Minute}
)

// fake implements Files, Inbox and, as fakeEvents, Events, and counts the calls. A nil function finds nothing to delete.
type fake struct {
	t        *testing.T
	sweep    func(ctx context.Context, call int) (pendinguploads.Swept, error)
	prune    func(ctx context.Context, call int) (int, bool, error)
	reclaim  func(ctx context.Context, call int) error
	forget   func(ctx context.Context, call int) (bool, error)
	sweeps   int // calls, of each
	prunes   int
	events   int
	reclaims int
}

func (f *fake) Reclaim(ctx context.Context) error {
	if f.reclaims++; f.reclaim == nil {
		return nil
	}
	return f.reclaim(ctx, f.reclaims)
}

func (f *fake) Sweep(ctx context.Context, acked time.Duration) (pendinguploads.Swept, error) {
	if acked != retention.Acked {
		f.t.Errorf("acknowledged files are kept for %s", acked)
	}
	if f.sweeps++; f.sweep == nil {
		return pendinguploads.Swept{}, nil
	}
	return f.sweep(ctx, f.sweeps)
}

func (f *fake) Prune(ctx context.Context, rows, unread time.Duration) (int, bool, error) {
	if rows != retention.Rows || unread != retention.Unread {
		f.t.Errorf("rows are kept for %s, and unread for %s", rows, unread)
	}
	if f.prunes++; f.prune == nil {
		return 0, false, nil
	}
	return f.prune(ctx, f.prunes)
}

type fakeEvents fake

func (f *fakeEvents) Prune(ctx context.Context, age time.Duration) (bool, error) {
	if age != retention.Events {
		f.t.Errorf("events are kept for %s", age)
	}
	if f.events++; f.forget == nil {
		return false, nil
	}
	return f.forget(ctx, f.events)
}

func (f *fake) Sweepable(context.Context, time.Duration) (pendinguploads.Swept, error) {
	return pendinguploads.Swept{Acked: 1, Expired: 2, AckedBytes: 30, ExpiredBytes: 40}, nil
}

func (f *fake) Prunable(context.Context, time.Duration, time.Duration) (int, error) { return 5, nil }

// observed is one call of observe.
type observed struct {
	sweeper.Result
	duration time.Duration
	at       time.Time
	err      error
}

// watch returns a sweeper, the calls of observe, and its log.
func watch(t *testing.T, f *fake) (*sweeper.Sweeper, *[]observed, *bytes.Buffer) {
	t.Helper()
	f.t = t
	var rounds []observed
	var log bytes.Buffer
	return sweeper.New(f, f, (*fakeEvents)(f), retention, slog.New(slog.NewJSONHandler(&log, nil)), func(r sweeper.Result, duration time.Duration, err error) {
		rounds = append(rounds, observed{r, duration, time.Now(), err})
	}), &rounds, &log
}

// lines returns the parsed lines of a log.
func lines(t *testing.T, log *bytes.Buffer) (lines []map[string]any) {
	t.Helper()
	for line := range strings.Lines(log.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fields)
	}
	return lines
}

// synctest's clock stands still while anything runs, so a sweep takes no time.
// Planted faults: the first sweep after the interval; no jitter; jitter of half the interval.
func TestRun_SweepsAtOnceAndThenByItsInterval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, rounds, log := watch(t, &fake{})
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		ended := make(chan struct{})
		go func() { s.Run(ctx); close(ended) }()
		time.Sleep(1000 * retention.Interval)
		cancel()
		<-ended

		if n := len(*rounds); n < 980 || n > 1020 {
			t.Fatalf("%d rounds", n)
		}
		if first := (*rounds)[0].at.Sub(start); first != 0 {
			t.Errorf("the first round came after %s", first)
		}
		shortest, longest := retention.Interval, retention.Interval
		for i, r := range (*rounds)[1:] {
			gap := r.at.Sub((*rounds)[i].at)
			shortest, longest = min(shortest, gap), max(longest, gap)
		}
		if shortest < retention.Interval*9/10 || shortest > retention.Interval*92/100 ||
			longest > retention.Interval*11/10 || longest < retention.Interval*108/100 {
			t.Errorf("sweeps came after %s to %s, want %s plus or minus 10 %%", shortest, longest, retention.Interval)
		}
		if log.Len() > 0 {
			t.Errorf("a sweep that found nothing logs %s", log)
		}
	})
}

// Planted faults: recover left out; the loop ended by an error; observe not called after an error; the rows skipped
// when the files fail.
func TestRun_GoesOnAfterErrorsAndPanics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{
			sweep: func(_ context.Context, call int) (pendinguploads.Swept, error) {
				switch call {
				case 1:
					return pendinguploads.Swept{Acked: 1, AckedBytes: 10}, errFiles
				case 2:
					panic("a bug")
				}
				return pendinguploads.Swept{Acked: 2, AckedBytes: 20, Expired: 3, ExpiredBytes: 30}, nil
			},
			prune: func(_ context.Context, call int) (int, bool, error) {
				if call == 3 {
					return 0, false, errRows
				}
				return 4, false, nil
			},
		}
		s, rounds, log := watch(t, f)
		ctx, cancel := context.WithTimeout(t.Context(), retention.Interval*7/2)
		defer cancel()
		s.Run(ctx)

		if len(*rounds) != 4 {
			t.Fatalf("%d rounds, want 4", len(*rounds))
		}
		for i, want := range []struct {
			acked, expired, rows int
			err                  string
		}{{1, 0, 4, errFiles.Error()}, {0, 0, 4, "panic: a bug"}, {2, 3, 0, errRows.Error()}, {2, 3, 4, ""}} {
			r, line := (*rounds)[i], lines(t, log)[i]
			if r.Acked != want.acked || r.Expired != want.expired || r.Rows != want.rows || (r.err == nil) != (want.err == "") {
				t.Errorf("round %d: %+v", i+1, r)
			}
			message, level := "swept", "INFO"
			if want.err != "" {
				message, level = "sweep failed; retrying at the next interval", "ERROR"
				if cause := line["error"].(string); !strings.Contains(cause, want.err) || !strings.Contains(r.err.Error(), want.err) {
					t.Errorf("round %d: logged %q, observed %v", i+1, cause, r.err)
				}
			}
			if line["msg"] != message || line["level"] != level || line["acked"] != float64(want.acked) || line["rows"] != float64(want.rows) {
				t.Errorf("round %d: logged %v", i+1, line)
			}
		}
		if !strings.Contains((*rounds)[1].err.Error(), "sweeper_test.go") {
			t.Errorf("no stack: %v", (*rounds)[1].err)
		}
	})
}

// Planted faults: sleep without ctx; a batch without ctx.
func TestRun_StopsAtOnce(t *testing.T) {
	t.Parallel()
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	for name, c := range map[string]struct {
		fake   *fake
		rounds int // that ended before
	}{
		"between rounds": {&fake{}, 1},
		"in a batch of files": {&fake{sweep: func(ctx context.Context, _ int) (pendinguploads.Swept, error) {
			return pendinguploads.Swept{}, hang(ctx)
		}}, 0},
		"in a batch of rows": {&fake{prune: func(ctx context.Context, _ int) (int, bool, error) { return 0, false, hang(ctx) }}, 0},
		"between batches": {&fake{sweep: func(context.Context, int) (pendinguploads.Swept, error) {
			return pendinguploads.Swept{More: true}, nil
		}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, rounds, log := watch(t, c.fake)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { s.Run(ctx); close(ended) }()
				time.Sleep(10 * time.Second)
				stop := time.Now()
				cancel()
				<-ended
				if took := time.Since(stop); took != 0 {
					t.Errorf("stopping took %s", took)
				}
				if len(*rounds) != c.rounds || log.Len() > 0 {
					t.Errorf("%d rounds were observed, want %d; log: %s", len(*rounds), c.rounds, log)
				}
			})
		})
	}
}

func TestRunOnce_GoesOnUntilThereIsNoMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{
			sweep: func(_ context.Context, call int) (pendinguploads.Swept, error) {
				return pendinguploads.Swept{Acked: 1, AckedBytes: 10, Expired: 2, ExpiredBytes: 20, More: call < 4}, nil
			},
			prune:  func(_ context.Context, call int) (int, bool, error) { return 1000, call < 3, nil },
			forget: func(_ context.Context, call int) (bool, error) { return call < 6, nil },
		}
		s, rounds, _ := watch(t, f)
		start := time.Now()
		r, err := s.RunOnce(t.Context())
		want := sweeper.Result{Swept: pendinguploads.Swept{Acked: 4, AckedBytes: 40, Expired: 8, ExpiredBytes: 80}, Rows: 3000}
		if err != nil || r != want || f.sweeps != 4 || f.prunes != 3 || f.events != 6 {
			t.Errorf("%+v after %d, %d and %d batches, %v; want %+v", r, f.sweeps, f.prunes, f.events, err, want)
		}
		if took := time.Since(start); took != 10*50*time.Millisecond {
			t.Errorf("it took %s, want a pause of 50 ms after each batch but the last", took)
		}
		if len(*rounds) != 0 {
			t.Error("RunOnce called observe")
		}
	})
}

// A batch that hangs costs 30 seconds, not the loop. Planted faults: no timeout; one timeout for the whole sweep.
func TestRunOnce_EachBatchHasATimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{sweep: func(ctx context.Context, call int) (pendinguploads.Swept, error) {
			if call < 3 {
				time.Sleep(29 * time.Second)
				return pendinguploads.Swept{Acked: 1, More: true}, ctx.Err()
			}
			<-ctx.Done()
			return pendinguploads.Swept{}, ctx.Err()
		}}
		s, _, _ := watch(t, f)
		start := time.Now()
		r, err := s.RunOnce(t.Context())
		if took := time.Since(start); took != 88*time.Second+100*time.Millisecond {
			t.Errorf("it took %s", took)
		}
		if !errors.Is(err, context.DeadlineExceeded) || r.Acked != 2 || f.prunes != 1 {
			t.Errorf("%+v, %v, %d batches of rows", r, err, f.prunes)
		}
	})
}

func TestRunOnce_ReturnsAllErrors(t *testing.T) {
	t.Parallel()
	s, _, _ := watch(t, &fake{
		sweep:  func(context.Context, int) (pendinguploads.Swept, error) { return pendinguploads.Swept{}, errFiles },
		prune:  func(context.Context, int) (int, bool, error) { return 0, false, errRows },
		forget: func(context.Context, int) (bool, error) { return false, errGone },
	})
	if _, err := s.RunOnce(t.Context()); !errors.Is(err, errFiles) || !errors.Is(err, errRows) || !errors.Is(err, errGone) {
		t.Errorf("%v, want all three errors", err)
	}
}

func TestDue_DeletesNothing(t *testing.T) {
	t.Parallel()
	f := &fake{}
	s, rounds, _ := watch(t, f)
	want := sweeper.Result{Swept: pendinguploads.Swept{Acked: 1, Expired: 2, AckedBytes: 30, ExpiredBytes: 40}, Rows: 5}
	if r, err := s.Due(t.Context()); err != nil || r != want || f.sweeps+f.prunes != 0 || len(*rounds) != 0 {
		t.Errorf("%+v, %v, %d batches", r, err, f.sweeps+f.prunes)
	}
}

type broken struct{ fake }

func (*broken) Sweepable(context.Context, time.Duration) (pendinguploads.Swept, error) {
	return pendinguploads.Swept{}, errFiles
}

func (*broken) Prunable(context.Context, time.Duration, time.Duration) (int, error) {
	return 0, errRows
}

func TestDue_ReturnsErrors(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	if _, err := sweeper.New(&broken{}, &fake{}, nil, retention, log, nil).Due(t.Context()); !errors.Is(err, errFiles) {
		t.Errorf("%v, want the files' error", err)
	}
	if _, err := sweeper.New(&fake{}, &broken{}, nil, retention, log, nil).Due(t.Context()); !errors.Is(err, errRows) {
		t.Errorf("%v, want the rows' error", err)
	}
}

// Space is reclaimed when 256 MiB have been deleted since the last success, in one sweep or several. After a failure
// the next sweep tries again. Planted faults: the sum reset by each sweep, or not reset by a success, or reset by a
// failure; no timeout.
func TestRunOnce_ReclaimsSpaceAfter256MiB(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		var next pendinguploads.Swept
		f := &fake{
			sweep: func(context.Context, int) (pendinguploads.Swept, error) { return next, nil },
			reclaim: func(ctx context.Context, call int) error {
				switch call {
				case 2:
					return errFiles
				case 3:
					panic("a bug")
				case 4:
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			},
		}
		s, _, log := watch(t, f)
		for i, c := range []struct {
			acked, expired int64
			calls          int
			err            string
		}{
			{100 * mib, 100 * mib, 0, ""}, {0, 55*mib + mib - 1, 0, ""}, {1, 0, 1, ""}, {255 * mib, 0, 1, ""},
			{0, mib, 2, "the files' disk"}, {0, 0, 3, "panic: a bug"}, {0, 0, 4, "deadline exceeded"}, {0, 0, 5, ""}, {0, 0, 5, ""},
		} {
			next = pendinguploads.Swept{AckedBytes: c.acked, ExpiredBytes: c.expired}
			start := time.Now()
			_, err := s.RunOnce(t.Context())
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) || f.reclaims != c.calls {
				t.Errorf("round %d: %v after %d calls, want %q after %d", i+1, err, f.reclaims, c.err, c.calls)
			}
			if took := time.Since(start); c.calls == 4 && took != 10*time.Minute {
				t.Errorf("it took %s", took)
			}
		}
		logged := lines(t, log)
		if len(logged) != 2 || logged[0]["msg"] != "space reclaimed" || logged[0]["bytes"] != float64(256*mib) || logged[1]["bytes"] != float64(256*mib) {
			t.Errorf("logged %v", logged)
		}
	})
}

func TestRunOnce_ReclaimsNothingWhenItStops(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	f := &fake{sweep: func(context.Context, int) (pendinguploads.Swept, error) {
		cancel()
		return pendinguploads.Swept{AckedBytes: 1 << 30}, nil
	}}
	s, _, _ := watch(t, f)
	if _, err := s.RunOnce(ctx); !errors.Is(err, context.Canceled) || f.reclaims+f.prunes != 0 {
		t.Errorf("%v, %d calls of Reclaim and Prune", err, f.reclaims+f.prunes)
	}
}

// Files arrive as fast as they are deleted: rows and events get their turn, space is reclaimed, and sweeps are observed. Planted
// faults: a sweep without a deadline; space reclaimed only at the end of a sweep.
func TestRun_SweepEndsWhileFilesKeepArriving(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{
			sweep: func(context.Context, int) (pendinguploads.Swept, error) {
				time.Sleep(950 * time.Millisecond)
				return pendinguploads.Swept{Acked: 1, AckedBytes: 64 << 20, More: true}, nil
			},
			reclaim: func(_ context.Context, call int) error {
				if call == 3 {
					return errFiles
				}
				return nil
			},
		}
		s, rounds, _ := watch(t, f)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute+30*time.Second)
		defer cancel()
		s.Run(ctx)
		if n := len(*rounds); n != 5 || f.prunes != 5 || f.events != 5 {
			t.Errorf("%d rounds were observed, the rows had %d turns and the events %d, want 5", n, f.prunes, f.events)
		}
		for i, r := range *rounds {
			if r.Acked < 59 || r.Acked > 61 || (r.err == nil) != (i != 0) {
				t.Errorf("round %d: %d files, %v", i+1, r.Acked, r.err)
			}
		}
		// Every fourth batch, but not again in the sweep in which it failed.
		if f.reclaims < 3+4*14 || f.reclaims > 3+5*16 {
			t.Errorf("space was reclaimed %d times", f.reclaims)
		}
	})
}
