package forward

import (
	"errors"
	"io"
	"sync"
)

// errDetached answers a Read of the transport's after Post has returned.
var errDetached = errors.New("forward: request has ended")

// requestBody stands between the transport and the caller's body. It remembers the
// requestBody's own failure, which the transport would report as one of the connection,
// and it can be cut off: the transport's writer may outlive the exchange, and
// the caller's body must not be read once its handler has returned.
type requestBody struct {
	mu          sync.Mutex // held while reading, so that detach waits
	r           io.Reader
	lengthKnown bool  // the length is: left counts
	remaining   int64 // bytes still to come
	err         error // the first failure of r
	detached    bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.detached:
		return 0, errDetached
	case b.err != nil:
		return 0, b.err
	case b.lengthKnown && b.remaining == 0:
		return 0, io.EOF // the length is a promise: what comes after it is not sent
	case b.lengthKnown && int64(len(p)) > b.remaining:
		p = p[:b.remaining]
	}
	n, err := b.r.Read(p)
	if b.lengthKnown {
		b.remaining -= int64(n)
	}
	if err == io.EOF && b.lengthKnown && b.remaining > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// Close does nothing: the body is the caller's to close.
func (b *requestBody) Close() error { return nil }

// detach waits for a Read under way, prevents any other, and returns the
// requestBody's failure, if it had one.
func (b *requestBody) detach() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.detached = true
	return b.err
}
