package handlers

import (
	"net/http"

	"golang.org/x/sync/semaphore"
)

// Admission bounds how many requests with large bodies are in flight, and with them the
// memory that they take. Uploads have one and downloads another, so that files can still be
// fetched when there is no room for more; polls and acks need none.
type Admission struct {
	slots *semaphore.Weighted
}

// NewAdmission admits up to n requests at a time.
func NewAdmission(n int) *Admission {
	return &Admission{slots: semaphore.NewWeighted(int64(n))}
}

// Admit takes a slot until release is called, or refuses with a 503 if there is none: who
// is told to come back is better off than who waits in a queue that grows.
func (a *Admission) Admit() (release func(), err error) {
	if !a.slots.TryAcquire(1) {
		return nil, refuse(http.StatusServiceUnavailable, "saturated", "the platform is busy; retry shortly").after(saturatedSeconds)
	}
	return func() { a.slots.Release(1) }, nil
}
