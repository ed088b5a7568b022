package pendinguploads

import "time"

// ErrDigest is what a Move says of bytes that are not the file's.
var ErrDigest = errDigest

// ErrNoBytes is what a reader says of a file that is there, and whose bytes are not.
var ErrNoBytes = errNoBytes

// KeepAlive makes transactions that wait for objects be used this often.
func (b *Bucket) KeepAlive(every time.Duration) { b.alive = every }

// StallAfter makes a store be asked again after so long without a byte.
func (b *Bucket) StallAfter(d time.Duration) { b.stall = d }
