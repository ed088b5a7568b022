package pendinguploads

import "time"

// ErrDigestMismatch is what Move returns for content that is not the file's.
var ErrDigestMismatch = errDigestMismatch

// ErrContentMissing is what a reader returns if the file exists and its content is missing.
var ErrContentMissing = errContentMissing

// SetKeepaliveInterval sets how often a transaction that waits for objects runs a statement.
func (s *ObjectStorage) SetKeepaliveInterval(interval time.Duration) { s.keepaliveInterval = interval }

// SetStallTimeout sets how long a store may take to return the next bytes.
func (s *ObjectStorage) SetStallTimeout(timeout time.Duration) { s.stallTimeout = timeout }
