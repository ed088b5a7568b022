package pendinguploads

import "time"

// KeepAlive makes transactions that wait for objects be used this often.
func (b *Bucket) KeepAlive(every time.Duration) { b.alive = every }
