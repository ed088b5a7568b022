package pendinguploads_test

import (
	"context"
	"errors"
	"testing"

	"github.com/lib/pq"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// PostgreSQL's error for a cancelled statement may arrive before database/sql notices that the context has
// ended. Planted: the error returned as it is.
func TestWithContextError_AddsTheContextsError(t *testing.T) {
	t.Parallel()
	report := &pq.Error{Code: "57014", Message: "canceling statement due to user request"}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := pendinguploads.WithContextError(over, report); !errors.Is(err, context.Canceled) || !errors.Is(err, report) {
		t.Errorf("ended: %v", err)
	}
	for _, c := range []struct {
		ctx context.Context
		err error
	}{{t.Context(), report}, {over, context.Canceled}} {
		if err := pendinguploads.WithContextError(c.ctx, c.err); !errors.Is(err, c.err) || err.Error() != c.err.Error() {
			t.Errorf("%v became %v", c.err, err)
		}
	}
}
