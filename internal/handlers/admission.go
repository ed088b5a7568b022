package handlers

import (
	"net/http"

	"golang.org/x/sync/semaphore"
)

// Admission bounds how many requests with large bodies are in flight, and with them the
// memory that they take. Uploads, downloads and calls of
// push workspaces have one each: files can be fetched while there is no room for more, and
// agents that think for minutes keep nobody from uploading. Acks and the like need none.
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
		return nil, saturated()
	}
	return func() { a.slots.Release(1) }, nil
}

func saturated() *refusal {
	return refuse(http.StatusServiceUnavailable, "saturated", "the platform is busy; retry shortly").retryIn(saturatedRetrySeconds)
}
