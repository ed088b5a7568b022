package handlers

import (
	"testing"
	"testing/synctest"
	"time"
)

// Planted: no limit; the number of skipped lines lost, or reported twice.
func TestAuthFailureLimit_LogsABurstAndCountsTheSkipped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newAuthFailureLimit()
		lines := 0
		for range 300 {
			if skipped, ok := s.allow(); ok {
				lines++
				if skipped != 0 {
					t.Errorf("%d skipped before there were too many", skipped)
				}
			}
		}
		if lines != authFailureBurst {
			t.Errorf("%d lines at once, want %d", lines, authFailureBurst)
		}
		for _, want := range []int64{300 - authFailureBurst, 0} {
			time.Sleep(3 * time.Second)
			if skipped, ok := s.allow(); !ok || skipped != want {
				t.Errorf("%d skipped, %t, want %d", skipped, ok, want)
			}
		}
	})
}
