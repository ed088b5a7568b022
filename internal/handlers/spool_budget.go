package handlers

import (
	"io"
	"math"

	"github.com/gin-gonic/gin"
	"golang.org/x/sync/semaphore"

	"github.com/molecule-ai/platform/internal/metrics"
)

// spoolBudget bounds the bytes that uploads in flight hold in memory and temporary files, all of
// them together. An upload takes its room before its first byte is read, if it says how long it
// is; so who finds none is told before sending. What is streamed to a push workspace is not held,
// and takes none.
type spoolBudget struct {
	bytes *semaphore.Weighted
}

// newSpoolBudget returns a budget of n bytes; of 0, one without end.
func newSpoolBudget(n int64) *spoolBudget {
	if n == 0 {
		n = math.MaxInt64
	}
	return &spoolBudget{bytes: semaphore.NewWeighted(n)}
}

// spoolStep is how much more is taken when a body turns out to be longer than what was taken for
// it. One that does not say its length begins with nothing.
const spoolStep = 1 << 20

// spoolReservation is what one upload has of the budget. It is for one goroutine.
type spoolReservation struct {
	budget *spoolBudget
	meter  *metrics.Platform
	limit  int64 // an upload never holds more
	held   int64
}

// reserve takes room for an upload that announces so many bytes, -1 if it does not say, and of which
// at most most are ever held. The caller releases it.
func (b *spoolBudget) reserve(c *gin.Context, announced, limit int64) (*spoolReservation, error) {
	r := &spoolReservation{budget: b, meter: meter(c), limit: limit}
	return r, r.grow(max(announced, 0))
}

// grow takes n bytes more, or refuses with a 503.
func (r *spoolReservation) grow(n int64) error {
	n = min(n, r.limit-r.held)
	if !r.budget.bytes.TryAcquire(n) {
		return saturated()
	}
	r.held += n
	r.meter.SpoolReserved(n)
	return nil
}

// release gives all of it back. Further calls do nothing.
func (r *spoolReservation) release() {
	r.budget.bytes.Release(r.held)
	r.meter.SpoolReserved(-r.held)
	r.held = 0
}

// body returns the upload's body, which fails as soon as it has brought more than there is room
// for. What was announced is only what is begun with: it is what comes that counts.
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
			return 0, err // what was read is forgotten
		}
	}
	return n, err
}
