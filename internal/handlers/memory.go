package handlers

import (
	"errors"
	"io"
	"net/http"
	"slices"

	"github.com/gin-gonic/gin"
	"golang.org/x/sync/semaphore"
)

// Memory is a budget for the JSON that all requests hold: bodies that are being read and pages that are
// being sent. What a request has reserved is released when the request ends or is refused.
type Memory struct {
	bytes *semaphore.Weighted
}

// NewMemory returns a budget of n bytes as on the wire. Parsed and encoded JSON takes a few times as much
// memory.
func NewMemory(n int64) *Memory { return &Memory{bytes: semaphore.NewWeighted(n)} }

const memoryKey = "handlers.memory"

type memoryReservation struct {
	memory *Memory
	held   int64
}

// Account is middleware that lets a request reserve memory, and releases it when the request ends.
func (m *Memory) Account(c *gin.Context) {
	a := &memoryReservation{memory: m}
	c.Set(memoryKey, a)
	defer a.release()
	c.Next()
}

// release returns the reservation to the budget.
func (a *memoryReservation) release() {
	a.memory.bytes.Release(a.held)
	a.held = 0
}

// releaseMemory releases a request's reservation early.
func releaseMemory(c *gin.Context) {
	if a, ok := c.Value(memoryKey).(*memoryReservation); ok {
		a.release()
	}
}

// reserve reserves n bytes until the request ends, or refuses with a 503. Requests without the middleware
// Account are not counted.
func reserve(c *gin.Context, n int64) error {
	a, ok := c.Value(memoryKey).(*memoryReservation)
	if !ok {
		return nil
	}
	if !a.memory.bytes.TryAcquire(n) {
		return saturated()
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
