package metrics

import (
	"io"
	"strconv"
	"sync/atomic"
	"time"
)

// otherRoute is what is not a route of the platform, otherMethod what is no method of HTTP: a
// client could make up any number of them.
const (
	otherRoute  = "none"
	otherMethod = "other"
)

var methods = map[string]bool{"GET": true, "HEAD": true, "POST": true, "PUT": true, "PATCH": true, "DELETE": true, "OPTIONS": true}

// Request notes that a request has begun. Call answered with its status when it is over. The
// route is the one in the route table, "" if there is none; the operation is "" for those that
// are only counted.
func (p *Platform) Request(route, method, operation string) (answered func(status int)) {
	if p == nil {
		return func(int) {}
	}
	if route == "" {
		route = otherRoute
	}
	if !methods[method] {
		method = otherMethod
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

// Refused notes an answer that is an error.
func (p *Platform) Refused(route, code string) {
	if p == nil {
		return
	}
	if route == "" {
		route = otherRoute
	}
	p.refusals.WithLabelValues(route, code).Inc()
}

// Staged notes that a file was staged.
func (p *Platform) Staged(bytes int64) {
	if p != nil {
		p.stagedFiles.Inc()
		p.stagedBytes.Add(float64(bytes))
	}
}

// Replayed notes that an upload was sent again and answered as the first time.
func (p *Platform) Replayed() {
	if p != nil {
		p.replayed.Inc()
	}
}

// Fetched notes that a file was read to its end for the first time.
func (p *Platform) Fetched(bytes int64) {
	if p != nil {
		p.fetchedFiles.Inc()
		p.fetchedBytes.Add(float64(bytes))
	}
}

// Sent notes bytes of a content that went to a client.
func (p *Platform) Sent(bytes int64) {
	if p != nil {
		p.sentBytes.Add(float64(bytes))
	}
}

// Acked notes that a file was acknowledged, so long after it was staged.
func (p *Platform) Acked(bytes int64, latency time.Duration) {
	if p != nil {
		p.ackedFiles.Inc()
		p.ackedBytes.Add(float64(bytes))
		p.ackLatency.Observe(max(latency, 0).Seconds())
	}
}

// Sweep is what a round of the sweep did.
type Sweep struct {
	AckedFiles, ExpiredFiles int
	AckedBytes, ExpiredBytes int64
	InboxRows                int
	Duration                 time.Duration
	Err                      error // why it did not do all
}

// Swept notes a round of the sweep.
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

// Object notes that one of ObjectOperations was done, and whether it failed.
func (p *Platform) Object(operation string, took time.Duration, err error) {
	if p == nil {
		return
	}
	p.objectDuration.WithLabelValues(operation).Observe(took.Seconds())
	if err != nil {
		p.objectErrors.WithLabelValues(operation).Inc()
	}
}

// SpoolReserved notes that uploads in flight have taken room for more bytes, or for less.
func (p *Platform) SpoolReserved(bytes int64) {
	if p != nil {
		p.spoolReserved.Add(float64(bytes))
	}
}

// A Spool counts the bytes of one upload while they are held.
type Spool struct {
	platform *Platform
	bytes    atomic.Int64
	done     atomic.Bool
}

// Spool notes that an upload begins to be taken off the wire.
func (p *Platform) Spool() *Spool { return &Spool{platform: p} }

// Body counts what is read of body as held.
func (s *Spool) Body(body io.ReadCloser) io.ReadCloser { return &spoolBody{body, s} }

// Done notes that nothing of the upload is held any more. refusal is the code of the answer if
// the upload was refused, else "". Further calls do nothing.
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
