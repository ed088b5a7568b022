//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"
)

const (
	// spoolBytes is the size of the file system for temporary files: many times the size of the uploads in flight.
	spoolBytes = 256 << 20

	// maxFileWhileFull is the maximum size of a file while a full disk is simulated, where nothing can be mounted.
	// Every upload that does not stay in memory is larger.
	maxFileWhileFull = 256 << 10
)

// A spool is the folder for the temporary files of uploads, whose disk can be filled.
type spool struct {
	dir     string
	mounted bool
	pids    func() []int // of the platforms
}

// newSpool mounts a small file system, if it has the permission.
func newSpool(dir string, pids func() []int) (*spool, error) {
	s := &spool{dir: filepath.Join(dir, "spool"), pids: pids}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return nil, err
	}
	err := syscall.Mount("tmpfs", s.dir, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, fmt.Sprintf("size=%d", spoolBytes))
	s.mounted = err == nil
	if err != nil && !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES) {
		return nil, fmt.Errorf("mount a file system for temporary files: %w", err)
	}
	return s, nil
}

// fillMethod describes how the disk is filled, for the report.
func (s *spool) fillMethod() string {
	if s.mounted {
		return fmt.Sprintf("disk full: a file system of %d MiB for temporary files is filled", spoolBytes>>20)
	}
	return fmt.Sprintf("disk full: nothing can be mounted here; instead the platforms cannot write files larger than %d KiB", maxFileWhileFull>>10)
}

// fill fills the disk until free is called.
func (s *spool) fill() (free func() error, err error) {
	if !s.mounted {
		if err := s.limit(maxFileWhileFull); err != nil {
			return nil, err
		}
		return func() error { return s.limit(noLimit) }, nil
	}
	path := filepath.Join(s.dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for block := make([]byte, 1<<20); ; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			break
		} else if err != nil {
			return nil, errors.Join(err, os.Remove(path))
		}
	}
	return func() error { return os.Remove(path) }, nil
}

const noLimit = ^uint64(0)

// limit sets the maximum size of files that the platforms write. It changes the soft limit only, so that it can be
// raised again.
func (s *spool) limit(bytes uint64) error {
	for _, pid := range s.pids() {
		var current syscall.Rlimit
		if err := prlimit(pid, nil, &current); err != nil {
			return err
		}
		current.Cur = min(bytes, current.Max)
		if err := prlimit(pid, &current, nil); err != nil {
			return err
		}
	}
	return nil
}

func prlimit(pid int, set, get *syscall.Rlimit) error {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(pid), syscall.RLIMIT_FSIZE,
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(get)), 0, 0)
	if errno != 0 && errno != syscall.ESRCH {
		return fmt.Errorf("limit the files of process %d: %w", pid, errno)
	}
	return nil
}

// files returns what is left in the folder.
func (s *spool) files() (bytes int64, names []string, err error) {
	entries, err := os.ReadDir(s.dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			bytes += info.Size()
			names = append(names, e.Name())
		}
	}
	return bytes, names, err
}

func (s *spool) close() error {
	if !s.mounted {
		return nil
	}
	return syscall.Unmount(s.dir, syscall.MNT_DETACH)
}
