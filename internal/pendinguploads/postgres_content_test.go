package pendinguploads_test

import (
	"context"
	"errors"
	"testing"

	"github.com/lib/pq"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// PostgreSQL's answer to a cancelled statement, which may come before database/sql notices that the context has ended.
// Planted: the answer as it is.
func TestWithContextError_AddsTheContextsError(t *testing.T) {
	t.Parallel()
	told := &pq.Error{Code: "57014", Message: "canceling statement due to user request"}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := pendinguploads.WithContextError(over, told); !errors.Is(err, context.Canceled) || !errors.Is(err, told) {
		t.Errorf("ended: %v", err)
	}
	for _, c := range []struct {
		ctx context.Context
		err error
	}{{t.Context(), told}, {over, context.Canceled}} {
		if err := pendinguploads.WithContextError(c.ctx, c.err); !errors.Is(err, c.err) || err.Error() != c.err.Error() {
			t.Errorf("%v became %v", c.err, err)
		}
	}
}
