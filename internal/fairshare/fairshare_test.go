package fairshare_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/molecule-ai/platform/internal/fairshare"
)

var a, b, c = uuid.New(), uuid.New(), uuid.New()

func take(t *testing.T, budget *fairshare.Budget, holder uuid.UUID, n, want int) {
	t.Helper()
	got := 0
	for range n {
		if err := budget.Take(holder, 1); err == nil {
			got++
		} else if !errors.Is(err, fairshare.ErrSaturated) {
			t.Fatal(err)
		}
	}
	if got != want {
		t.Errorf("%d of %d units admitted, want %d", got, n, want)
	}
}

// Planted: a holder above its share is admitted while anything is free, so the second one finds nothing.
func TestTake_OneHolderLeavesAQuarterToOthers(t *testing.T) {
	t.Parallel()
	budget := fairshare.New(16)
	take(t, budget, a, 20, 12)
	take(t, budget, b, 20, 4)
	take(t, budget, c, 1, 0)
	budget.Release(a, 12)
	take(t, budget, c, 20, 8) // 4 of its share, then 4 more until a quarter is free
	if budget.Free() != 4 {
		t.Errorf("%d free", budget.Free())
	}
}

func TestTake_SmallBudgetAdmitsOneEach(t *testing.T) {
	t.Parallel()
	budget := fairshare.New(2)
	take(t, budget, a, 3, 1)
	take(t, budget, b, 3, 1)
	alone := fairshare.New(1)
	take(t, alone, a, 2, 1)
}

func TestRelease_MoreThanHeldPanics(t *testing.T) {
	t.Parallel()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	fairshare.New(4).Release(a, 1)
}

// The waiter of another workspace passes those of one that is above its share. Planted: strictly first come, first served.
func TestAcquire_OthersPassAHolderAboveItsShare(t *testing.T) {
	t.Parallel()
	budget := fairshare.New(4)
	take(t, budget, a, 3, 3)
	take(t, budget, b, 1, 1)
	var first atomic.Int32
	var wg sync.WaitGroup
	waiting := make(chan struct{}, 2)
	enter := func(holder uuid.UUID, mark int32) {
		waiting <- struct{}{}
		if err := budget.Acquire(t.Context(), holder, 1); err != nil {
			t.Error(err)
			return
		}
		first.CompareAndSwap(0, mark)
		budget.Release(holder, 1)
	}
	wg.Go(func() { enter(a, 1) })
	<-waiting
	waitFor(t, func() bool { return budget.Waiting() == 1 })
	wg.Go(func() { enter(c, 2) })
	waitFor(t, func() bool { return budget.Waiting() == 2 })
	budget.Release(a, 1)
	waitFor(t, func() bool { return first.Load() != 0 })
	budget.Release(a, 2)
	budget.Release(b, 1)
	wg.Wait()
	if first.Load() != 2 {
		t.Error("the holder above its share went first")
	}
	if budget.Free() != 4 {
		t.Errorf("%d free", budget.Free())
	}
}

// Planted: a waiter that gives up stays in the queue and is given units that nobody releases.
func TestAcquire_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	budget := fairshare.New(1)
	take(t, budget, a, 1, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := budget.Acquire(ctx, b, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	budget.Release(a, 1)
	if budget.Free() != 1 || budget.Waiting() != 0 {
		t.Errorf("%d free, %d waiting", budget.Free(), budget.Waiting())
	}
	if err := budget.Acquire(t.Context(), b, 2); !errors.Is(err, fairshare.ErrSaturated) {
		t.Errorf("more than there is: %v", err)
	}
}

// Two workspaces wait; they are served in turn, although one has waited more often and for longer. Planted: the holder
// that was served stays the first.
func TestAcquire_ServesHoldersInTurn(t *testing.T) {
	t.Parallel()
	budget := fairshare.New(1)
	take(t, budget, c, 1, 1)
	served := make(chan uuid.UUID, 4)
	var wg sync.WaitGroup
	for i, holder := range []uuid.UUID{a, a, a, b} {
		wg.Go(func() {
			if err := budget.Acquire(t.Context(), holder, 1); err != nil {
				t.Error(err)
			}
			served <- holder
		})
		waitFor(t, func() bool { return budget.Waiting() == i+1 })
	}
	budget.Release(c, 1)
	for i, want := range []uuid.UUID{a, b, a, a} {
		if got := <-served; got != want {
			t.Errorf("turn %d: not the holder expected", i)
		}
		budget.Release(want, 1)
	}
	wg.Wait()
}

// Planted: the call behind a large one that gives up waits on.
func TestAcquire_NextIsServedWhenTheFirstGivesUp(t *testing.T) {
	t.Parallel()
	budget := fairshare.New(8)
	take(t, budget, b, 6, 6)
	take(t, budget, c, 1, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := budget.Acquire(ctx, a, 3); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	waitFor(t, func() bool { return budget.Waiting() == 1 })
	wg.Go(func() {
		if err := budget.Acquire(t.Context(), a, 2); err != nil {
			t.Error(err)
		}
	})
	waitFor(t, func() bool { return budget.Waiting() == 2 })
	budget.Release(c, 1)
	if budget.Waiting() != 2 {
		t.Error("a call passed an earlier one of its holder")
	}
	cancel()
	wg.Wait()
	if budget.Free() != 0 || budget.Waiting() != 0 {
		t.Errorf("%d free, %d waiting", budget.Free(), budget.Waiting())
	}
}

// Whatever is taken and released, units are neither lost nor made, and a holder without any gets one while one is free.
func TestBudget_AddsUp(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.Int64Range(1, 40).Draw(t, "total")
		budget := fairshare.New(total)
		held := map[uuid.UUID]int64{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			holder := rapid.SampledFrom([]uuid.UUID{a, b, c}).Draw(t, "holder")
			n := rapid.Int64Range(0, 6).Draw(t, "units")
			if rapid.Bool().Draw(t, "release") {
				n = min(n, held[holder])
				budget.Release(holder, n)
				held[holder] -= n
				continue
			}
			free := budget.Free()
			err := budget.Take(holder, n)
			if err == nil {
				held[holder] += n
			} else if held[holder]+n <= budget.Share() && n <= free {
				t.Fatalf("refused within its share: %v", err)
			}
			if sum := held[a] + held[b] + held[c]; sum+budget.Free() != total {
				t.Fatalf("%d held, %d free of %d", sum, budget.Free(), total)
			}
		}
	})
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for begun := time.Now(); !done(); time.Sleep(time.Millisecond) {
		if time.Since(begun) > 10*time.Second {
			t.Fatal("nothing happened within 10 s")
		}
	}
}
