//go:build !linux && !darwin

package metrics

// statfs is not implemented for this operating system.
func statfs(string) (size, free uint64, ok bool) { return 0, 0, false }
