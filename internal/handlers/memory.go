package handlers

import (
	"errors"
	"io"
	"net/http"
	"slices"

	"github.com/gin-gonic/gin"
	"golang.org/x/sync/semaphore"
)

// Memory bounds what requests hold of JSON at the same time: bodies that are being read and
// pages that are being sent. Each request has an account with it, which is settled when the
// request is over or refused.
type Memory struct {
	bytes *semaphore.Weighted
}

// NewMemory returns a budget of n bytes, counted as they are on the wire; parsed and encoded they
// take a few times as much.
func NewMemory(n int64) *Memory { return &Memory{bytes: semaphore.NewWeighted(n)} }

const memoryKey = "handlers.memory"

type memoryReservation struct {
	memory *Memory
	held   int64
}

// Account opens the request's account.
func (m *Memory) Account(c *gin.Context) {
	a := &memoryReservation{memory: m}
	c.Set(memoryKey, a)
	defer a.release()
	c.Next()
}

// release gives back what is held.
func (a *memoryReservation) release() {
	a.memory.bytes.Release(a.held)
	a.held = 0
}

// release gives back early what a request holds, if it has an account.
func releaseMemory(c *gin.Context) {
	if a, ok := c.Value(memoryKey).(*memoryReservation); ok {
		a.release()
	}
}

// reserve takes n bytes until the request is over, or refuses with a 503. A request without an
// memoryReservation is not counted.
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

// bodyStep is the least that is reserved of a body at a time. What a client announces is not
// reserved, what it sends is.
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
