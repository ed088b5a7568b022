package handlers

import (
	"errors"
	"io"
	"net/http"
	"slices"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/fairshare"
	"github.com/molecule-ai/platform/internal/wsauth"
)

const memoryKey = "handlers.memory"

// A memoryReservation is what a request has reserved of the budget for the JSON that all requests hold, bodies that
// are being read and pages that are being sent. Bytes count as on the wire; parsed and encoded JSON takes a few times
// as much memory.
type memoryReservation struct {
	budget *fairshare.Budget
	holder uuid.UUID
	held   int64
}

// Account is middleware that lets a request reserve memory of the budget for its workspace, and releases it when the
// request ends.
func Account(budget *fairshare.Budget) gin.HandlerFunc {
	return func(c *gin.Context) { account(c, budget, wsauth.WorkspaceOf(c)) }
}

// account calls the next handlers, and then releases what they have reserved for the holder.
func account(c *gin.Context, budget *fairshare.Budget, holder uuid.UUID) {
	a := &memoryReservation{budget: budget, holder: holder}
	c.Set(memoryKey, a)
	defer a.release()
	c.Next()
}

// release returns the reservation to the budget.
func (a *memoryReservation) release() {
	a.budget.Release(a.holder, a.held)
	a.held = 0
}

// releaseMemory releases a request's reservation early.
func releaseMemory(c *gin.Context) {
	if a, ok := c.Value(memoryKey).(*memoryReservation); ok {
		a.release()
	}
}

// reserve reserves n bytes until the request ends. fairshare.ErrSaturated. Requests without the middleware Account are
// not counted.
func reserve(c *gin.Context, n int64) error {
	a, ok := c.Value(memoryKey).(*memoryReservation)
	if !ok {
		return nil
	}
	if err := a.budget.Take(a.holder, n); err != nil {
		return err
	}
	a.held += n
	return nil
}

// bodyStep is the least that is reserved for a body at a time. Received bytes are reserved, not the
// announced Content-Length: a client that sends nothing would otherwise block others.
const bodyStep = 16 << 10

// readBody reads a body of at most maxJSONBytes.
func readBody(c *gin.Context) ([]byte, error) {
	body := http.MaxBytesReader(c.Writer, c.Request.Body, maxJSONBytes)
	var raw []byte
	for {
		if len(raw) == cap(raw) {
			larger := slices.Grow(raw, bodyStep)
			if err := reserve(c, int64(cap(larger)-cap(raw))); err != nil {
				return nil, err
			}
			raw = larger
		}
		n, err := body.Read(raw[len(raw):cap(raw)])
		raw = raw[:len(raw)+n]
		if errors.Is(err, io.EOF) {
			return raw, nil
		}
		if err != nil {
			return nil, bodyError(err, maxJSONBytes)
		}
	}
}
