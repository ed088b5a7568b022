package handlers

import (
	"net/http"

	"golang.org/x/sync/semaphore"
)

// Admission bounds the requests of one kind in flight, and with them the memory that they take. Uploads,
// downloads, calls of push workspaces, held polls and streams have one each, so that files can be fetched
// while uploads are saturated, and slow agents do not block uploads. Small requests such as acks need
// none.
type Admission struct {
	slots *semaphore.Weighted
}

// NewAdmission admits up to n requests at a time.
func NewAdmission(n int) *Admission {
	return &Admission{slots: semaphore.NewWeighted(int64(n))}
}

// Admit takes a slot until release is called. Without a free slot it refuses with a 503 and Retry-After
// instead of queueing: a queue would grow without bound.
func (a *Admission) Admit() (release func(), err error) {
	if !a.slots.TryAcquire(1) {
		return nil, saturated()
	}
	return func() { a.slots.Release(1) }, nil
}

func saturated() *refusal {
	return refuse(http.StatusServiceUnavailable, "saturated", "the platform is busy; retry shortly").retryIn(saturatedRetrySeconds)
}
