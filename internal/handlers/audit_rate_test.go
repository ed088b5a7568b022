package handlers

import (
	"testing"
	"testing/synctest"
	"time"
)

// Planted: no bound; the number of those without a line lost, or told twice.
func TestStrangers_SomeHaveALineAndTheNextOneCountsTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStrangers()
		lines := 0
		for range 300 {
			if skipped, ok := s.admit(); ok {
				lines++
				if skipped != 0 {
					t.Errorf("%d skipped before there were too many", skipped)
				}
			}
		}
		if lines != strangersAtOnce {
			t.Errorf("%d lines at once, want %d", lines, strangersAtOnce)
		}
		for _, want := range []int64{300 - strangersAtOnce, 0} {
			time.Sleep(3 * time.Second)
			if skipped, ok := s.admit(); !ok || skipped != want {
				t.Errorf("%d skipped, %t, want %d", skipped, ok, want)
			}
		}
	})
}
