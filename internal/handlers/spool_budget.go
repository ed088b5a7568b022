package handlers

import (
	"io"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/fairshare"
	"github.com/molecule-ai/platform/internal/metrics"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// newSpoolBudget returns the budget of the bytes that all uploads in flight hold in memory and temporary files; 0 is
// unlimited. An upload reserves what arrives, not what it announces. Uploads to push workspaces are streamed and
// reserve nothing.
func newSpoolBudget(n int64) *fairshare.Budget {
	if n == 0 {
		n = fairshare.Unlimited
	}
	return fairshare.New(n)
}

// The reservation of an upload grows as its bytes come, by an eighth within these bounds: so a client that hardly sends
// holds little, and one that sends much takes few steps.
const (
	minSpoolStep = 64 << 10
	maxSpoolStep = 1 << 20
)

// spoolReservation is the part of the budget that one upload holds. It is not safe for concurrent use.
type spoolReservation struct {
	budget *fairshare.Budget
	holder uuid.UUID
	meter  *metrics.Platform
	limit  int64 // the most that an upload ever holds
	held   int64
}

// reserveSpool returns an empty reservation of the request's workspace. It never exceeds limit. The caller releases it.
func reserveSpool(c *gin.Context, budget *fairshare.Budget, limit int64) *spoolReservation {
	return &spoolReservation{budget: budget, holder: wsauth.WorkspaceOf(c), meter: meter(c), limit: limit}
}

// grow reserves another step. fairshare.ErrSaturated.
func (r *spoolReservation) grow() error {
	n := min(max(r.held/8, minSpoolStep), maxSpoolStep, r.limit-r.held)
	if err := r.budget.Take(r.holder, n); err != nil {
		return err
	}
	r.held += n
	r.meter.SpoolReserved(n)
	return nil
}

// release returns the reservation to the budget. Further calls do nothing.
func (r *spoolReservation) release() {
	r.budget.Release(r.holder, r.held)
	r.meter.SpoolReserved(-r.held)
	r.held = 0
}

// body wraps the upload's body. Reading it reserves what arrives, and fails with fairshare.ErrSaturated if the budget
// is exhausted.
func (r *spoolReservation) body(b io.ReadCloser) io.ReadCloser {
	return &reservedBody{ReadCloser: b, reservation: r}
}

type reservedBody struct {
	io.ReadCloser
	reservation *spoolReservation
	read        int64
}

// Read implements io.Reader.
func (b *reservedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.read += int64(n)
	for b.read > b.reservation.held && b.reservation.held < b.reservation.limit {
		if err := b.reservation.grow(); err != nil {
			return 0, err // the bytes read are dropped
		}
	}
	return n, err
}
