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

// spoolRoom is what one upload has of the budget. It is for one goroutine.
type spoolRoom struct {
	budget *spoolBudget
	meter  *metrics.Platform
	most   int64 // an upload never holds more
	held   int64
}

// open takes room for an upload that announces so many bytes, -1 if it does not say, and of which
// at most most are ever held. The caller releases it.
func (b *spoolBudget) open(c *gin.Context, announced, most int64) (*spoolRoom, error) {
	r := &spoolRoom{budget: b, meter: meter(c), most: most}
	return r, r.grow(max(announced, 0))
}

// grow takes n bytes more, or refuses with a 503.
func (r *spoolRoom) grow(n int64) error {
	n = min(n, r.most-r.held)
	if !r.budget.bytes.TryAcquire(n) {
		return saturated()
	}
	r.held += n
	r.meter.SpoolReserved(n)
	return nil
}

// release gives all of it back. Further calls do nothing.
func (r *spoolRoom) release() {
	r.budget.bytes.Release(r.held)
	r.meter.SpoolReserved(-r.held)
	r.held = 0
}

// body returns the upload's body, which fails as soon as it has brought more than there is room
// for. What was announced is only what is begun with: it is what comes that counts.
func (r *spoolRoom) body(b io.ReadCloser) io.ReadCloser { return &roomBody{ReadCloser: b, room: r} }

type roomBody struct {
	io.ReadCloser
	room *spoolRoom
	read int64
}

// Read implements io.Reader.
func (b *roomBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.read += int64(n)
	for b.read > b.room.held && b.room.held < b.room.most {
		if err := b.room.grow(spoolStep); err != nil {
			return 0, err // what was read is forgotten
		}
	}
	return n, err
}
