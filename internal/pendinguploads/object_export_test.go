package pendinguploads

import "time"

// ErrDigestMismatch is what a Move says of bytes that are not the file's.
var ErrDigestMismatch = errDigestMismatch

// ErrContentMissing is what a reader says of a file that is there, and whose bytes are not.
var ErrContentMissing = errContentMissing

// SetKeepaliveInterval makes transactions that wait for objects be used this often.
func (b *ObjectStorage) SetKeepaliveInterval(every time.Duration) { b.alive = every }

// SetStallTimeout makes a store be asked again after so long without a byte.
func (b *ObjectStorage) SetStallTimeout(d time.Duration) { b.stall = d }
