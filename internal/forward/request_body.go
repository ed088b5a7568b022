package forward

import (
	"errors"
	"io"
	"sync"
)

// errDetached is returned to the transport if it reads after Post has returned.
var errDetached = errors.New("forward: request has ended")

// requestBody wraps the caller's body for the transport. It keeps the body's own error, which the
// transport would report as a connection error. It can be detached: the transport's writer may outlive
// the exchange, and the caller's body must not be read after its handler has returned.
type requestBody struct {
	mu          sync.Mutex // held while reading, so that detach waits
	r           io.Reader
	lengthKnown bool  // remaining is valid
	remaining   int64 // bytes not read yet
	err         error // the first error of r
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
		return 0, io.EOF // bytes beyond the announced length are not sent
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

// Close does nothing: the caller closes its body.
func (b *requestBody) Close() error { return nil }

// detach waits for a running Read, prevents further ones, and returns the body's error if it had one.
func (b *requestBody) detach() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.detached = true
	return b.err
}
