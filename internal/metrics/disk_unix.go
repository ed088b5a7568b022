//go:build linux || darwin

package metrics

import "syscall"

// statfs returns the size of a folder's file system and the space that the process may still use, in bytes.
func statfs(folder string) (size, free uint64, ok bool) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(folder, &s); err != nil {
		return 0, 0, false
	}
	return s.Blocks * uint64(s.Bsize), s.Bavail * uint64(s.Bsize), true
}
