package metrics

import (
	"io"
	"strconv"
	"sync/atomic"
	"time"
)

// unknownRoute and unknownMethod are the labels of every path without a route and of every method that is not in
// methods: clients could send any number of them.
const (
	unknownRoute  = "none"
	unknownMethod = "other"
)

var methods = map[string]bool{"GET": true, "HEAD": true, "POST": true, "PUT": true, "PATCH": true, "DELETE": true, "OPTIONS": true}

// Request records the start of a request. The caller calls answered with the status when the answer was sent. route is
// the pattern in the route table, "" if none matches; requests with the operation "" are counted, not timed.
func (p *Platform) Request(route, method, operation string) (answered func(status int)) {
	if p == nil {
		return func(int) {}
	}
	if route == "" {
		route = unknownRoute
	}
	if !methods[method] {
		method = unknownMethod
	}
	start := time.Now()
	if operation != "" {
		p.inFlight.WithLabelValues(operation).Inc()
	}
	return func(status int) {
		p.requests.WithLabelValues(route, method, strconv.Itoa(status/100)+"xx").Inc()
		if operation == "" {
			return
		}
		p.inFlight.WithLabelValues(operation).Dec()
		if status < 400 {
			p.duration.WithLabelValues(operation).Observe(time.Since(start).Seconds())
		}
	}
}

// Refused records an error answer by its code.
func (p *Platform) Refused(route, code string) {
	if p == nil {
		return
	}
	if route == "" {
		route = unknownRoute
	}
	p.refusals.WithLabelValues(route, code).Inc()
}

// Staged records a staged file.
func (p *Platform) Staged(bytes int64) {
	if p != nil {
		p.stagedFiles.Inc()
		p.stagedBytes.Add(float64(bytes))
	}
}

// Replayed records an upload that was repeated with its Idempotency-Key and answered as the first time.
func (p *Platform) Replayed() {
	if p != nil {
		p.replayed.Inc()
	}
}

// Fetched records the first complete download of a file.
func (p *Platform) Fetched(bytes int64) {
	if p != nil {
		p.fetchedFiles.Inc()
		p.fetchedBytes.Add(float64(bytes))
	}
}

// Sent records bytes of file content sent to a client.
func (p *Platform) Sent(bytes int64) {
	if p != nil {
		p.sentBytes.Add(float64(bytes))
	}
}

// Acked records an acknowledged file; latency is the time since it was staged.
func (p *Platform) Acked(bytes int64, latency time.Duration) {
	if p != nil {
		p.ackedFiles.Inc()
		p.ackedBytes.Add(float64(bytes))
		p.ackLatency.Observe(max(latency, 0).Seconds())
	}
}

// Sweep is the result of one sweep.
type Sweep struct {
	AckedFiles, ExpiredFiles int
	AckedBytes, ExpiredBytes int64
	InboxRows                int
	Duration                 time.Duration
	Err                      error // nil: the sweep succeeded
}

// Swept records a sweep.
func (p *Platform) Swept(s Sweep) {
	if p == nil {
		return
	}
	p.sweptFiles.WithLabelValues(stateAcked).Add(float64(s.AckedFiles))
	p.sweptBytes.WithLabelValues(stateAcked).Add(float64(s.AckedBytes))
	p.sweptFiles.WithLabelValues(stateExpired).Add(float64(s.ExpiredFiles))
	p.sweptBytes.WithLabelValues(stateExpired).Add(float64(s.ExpiredBytes))
	p.sweptRows.Add(float64(s.InboxRows))
	p.sweepDuration.Observe(s.Duration.Seconds())
	if s.Err != nil {
		p.sweepErrors.Inc()
		return
	}
	p.sweepSuccess.SetToCurrentTime()
}

// Object records one of ObjectOperations.
func (p *Platform) Object(operation string, duration time.Duration, err error) {
	if p == nil {
		return
	}
	p.objectDuration.WithLabelValues(operation).Observe(duration.Seconds())
	if err != nil {
		p.objectErrors.WithLabelValues(operation).Inc()
	}
}

// SpoolReserved records that uploads in flight have reserved more bytes, or released some if bytes is negative.
func (p *Platform) SpoolReserved(bytes int64) {
	if p != nil {
		p.spoolReserved.Add(float64(bytes))
	}
}

// A Spool counts the received bytes of one upload until it ends.
type Spool struct {
	platform *Platform
	bytes    atomic.Int64
	done     atomic.Bool
}

// Spool records the start of an upload.
func (p *Platform) Spool() *Spool { return &Spool{platform: p} }

// Body returns body, counting what is read from it.
func (s *Spool) Body(body io.ReadCloser) io.ReadCloser { return &spoolBody{body, s} }

// Done records the end of the upload, whose bytes are no longer held. refusal is the error code of the answer, "" if
// the upload was accepted. Further calls do nothing.
func (s *Spool) Done(refusal string) {
	if s.platform == nil || !s.done.CompareAndSwap(false, true) {
		return
	}
	bytes := float64(s.bytes.Load())
	s.platform.spooled.Sub(bytes)
	if refusal != "" {
		s.platform.refusedBytes.WithLabelValues(refusal).Add(bytes)
	}
}

type spoolBody struct {
	io.ReadCloser
	spool *Spool
}

// Read implements io.Reader.
func (b *spoolBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if s := b.spool; s.platform != nil && !s.done.Load() {
		s.bytes.Add(int64(n))
		s.platform.spooled.Add(float64(n))
	}
	return n, err
}
