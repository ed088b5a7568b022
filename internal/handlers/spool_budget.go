package handlers

import (
	"io"
	"math"

	"github.com/gin-gonic/gin"
	"golang.org/x/sync/semaphore"

	"github.com/molecule-ai/platform/internal/metrics"
)

// spoolBudget bounds the bytes that all uploads in flight hold in memory and temporary files. An upload
// with a Content-Length reserves it before its first byte is read, so a client is refused before it
// sends. Uploads to push workspaces are streamed and reserve nothing.
type spoolBudget struct {
	bytes *semaphore.Weighted
}

// newSpoolBudget returns a budget of n bytes; 0 is unlimited.
func newSpoolBudget(n int64) *spoolBudget {
	if n == 0 {
		n = math.MaxInt64
	}
	return &spoolBudget{bytes: semaphore.NewWeighted(n)}
}

// spoolStep is how much is reserved at a time for a body that exceeds its reservation. A body without a
// Content-Length starts with no reservation.
const spoolStep = 1 << 20

// spoolReservation is the part of the budget that one upload holds. It is not safe for concurrent use.
type spoolReservation struct {
	budget *spoolBudget
	meter  *metrics.Platform
	limit  int64 // the most that an upload ever holds
	held   int64
}

// reserve reserves the announced bytes of an upload, -1 if it has no Content-Length. The reservation
// never exceeds limit. The caller releases it.
func (b *spoolBudget) reserve(c *gin.Context, announced, limit int64) (*spoolReservation, error) {
	r := &spoolReservation{budget: b, meter: meter(c), limit: limit}
	return r, r.grow(max(announced, 0))
}

// grow reserves n bytes more, or refuses with a 503.
func (r *spoolReservation) grow(n int64) error {
	n = min(n, r.limit-r.held)
	if !r.budget.bytes.TryAcquire(n) {
		return saturated()
	}
	r.held += n
	r.meter.SpoolReserved(n)
	return nil
}

// release returns the reservation to the budget. Further calls do nothing.
func (r *spoolReservation) release() {
	r.budget.bytes.Release(r.held)
	r.meter.SpoolReserved(-r.held)
	r.held = 0
}

// body wraps the upload's body. Reading it reserves more if it is longer than announced, and fails with
// a 503 if the budget is exhausted.
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
		if err := b.reservation.grow(spoolStep); err != nil {
			return 0, err // the bytes read are dropped
		}
	}
	return n, err
}
