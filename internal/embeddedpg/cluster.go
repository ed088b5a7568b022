package embeddedpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// How long the server of a killed predecessor may take to end.
const predecessorTimeout = 20 * time.Second

// initialize makes the data folder of PostgreSQL if there is none: apart, and renamed when it
// is complete, so that a start that is interrupted leaves nothing that looks like data.
func (f *folder) initialize(ctx context.Context, bin binaries, id identity, log *serverLog, durable bool) error {
	data := dataPath(f.path)
	leftovers, _ := filepath.Glob(globEscape(data) + ".tmp-*")
	for _, leftover := range leftovers {
		_ = os.RemoveAll(leftover) // in vain if an orphaned initdb still writes; the next start removes it
	}
	if exists(data) {
		if err := f.checkOwned(data); err != nil {
			return err
		}
		if f.dataVersion() == 0 {
			return fmt.Errorf("%w: %s is not PostgreSQL's data: move it away, or choose another DATA_DIR", ErrDataDir, data)
		}
		return nil
	}

	tmp, err := os.MkdirTemp(f.path, filepath.Base(data)+".tmp-")
	if err != nil {
		return fmt.Errorf("make a folder for initdb: %w", err)
	}
	defer os.RemoveAll(tmp) // after the rename it is gone
	if err := f.chown(tmp); err != nil {
		return fmt.Errorf("make a folder for initdb: %w", err)
	}
	args := []string{"-D", tmp, "--username=" + userName, "--encoding=UTF8", "--no-locale",
		"--auth-local=trust", "--auth-host=reject", "--data-checksums"}
	if !durable {
		args = append(args, "--no-sync")
	}
	initdb, err := spawn(id, log, socketDir{}, bin.initdb, args...)
	if err != nil {
		return err
	}
	select {
	case <-initdb.exited:
	case <-ctx.Done():
		initdb.interrupt()
		return fmt.Errorf("initdb: %w", context.Cause(ctx))
	}
	if initdb.err != nil {
		return fmt.Errorf("initdb failed: %s", initdb.exitReason)
	}
	if err := os.Rename(tmp, data); err != nil {
		return fmt.Errorf("keep what initdb made: %w", err)
	}
	if !durable {
		return nil
	}
	return syncFolder(f.path)
}

// syncFolder makes a rename in a folder survive a power cut.
func syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// awaitPredecessor returns when no server runs on the data any more. One may, though we hold
// the lock: its owner was killed a moment ago, or its watchdog was killed as well. Of one that was
// killed itself, its children may take a moment to notice.
func (f *folder) awaitPredecessor(ctx context.Context) error {
	pidFile := filepath.Join(dataPath(f.path), "postmaster.pid")
	timeout := time.NewTimer(predecessorTimeout)
	defer timeout.Stop()
	retry := time.NewTicker(50 * time.Millisecond)
	defer retry.Stop()
	for signalled := false; ; {
		pid, alive := livingPredecessor(pidFile)
		if !alive && !hasOrphans(pidFile) {
			return nil
		}
		command, ok := "", false
		if alive {
			command, ok = commandLine(pid)
		}
		if ok && !f.isServer(command) {
			// After a restart of the machine the number means another process. PostgreSQL
			// would take that for a server and refuse to start.
			if err := os.Remove(pidFile); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove a stale postmaster.pid: %w", err)
			}
			return nil
		}
		if ok && !signalled {
			_ = syscall.Kill(pid, syscall.SIGINT)
			signalled = true
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the previous PostgreSQL (process %d) to end: %w", pid, context.Cause(ctx))
		case <-timeout.C:
			if !alive {
				return nil // PostgreSQL looks again, and says what to do
			}
			return fmt.Errorf("%w %s: the previous PostgreSQL (process %d) has not ended within %s", ErrInUse, f.path, pid, predecessorTimeout)
		case <-retry.C:
		}
	}
}

// livingPredecessor reads the process id from the first line of postmaster.pid. A process
// that is gone is left to PostgreSQL, which checks that none of its children is still there.
func livingPredecessor(pidFile string) (pid int, alive bool) {
	content, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, false
	}
	first, _, _ := strings.Cut(string(content), "\n")
	pid, err = strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 1 {
		return 0, false
	}
	return pid, !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// hasOrphans reports whether a process is attached to the shared memory of the server that wrote
// the file, by which PostgreSQL itself tells that it must not start yet. Only Linux lists such
// memory; the key is made of the data folder's inode, so that after a restart of the machine the
// number does not mean another server's.
func hasOrphans(pidFile string) bool {
	content, err := os.ReadFile(pidFile)
	if err != nil {
		return false
	}
	lines := strings.Split(string(content), "\n")
	if len(lines) < 7 {
		return false
	}
	var key, id uint64 // of the seventh line
	if _, err := fmt.Sscan(lines[6], &key, &id); err != nil {
		return false
	}
	segments, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(segments)) {
		// key shmid perms size cpid lpid nattch ...
		fields := strings.Fields(line)
		if len(fields) > 6 && fields[0] == fmt.Sprint(int32(key)) && fields[1] == fmt.Sprint(id) {
			return fields[6] != "0"
		}
	}
	return false
}

// isServer reports whether a command line is that of a server on our data.
func (f *folder) isServer(command string) bool {
	return strings.Contains(command+" ", " -D "+dataPath(f.path)+" ")
}

// commandLine returns the arguments of a process, separated by spaces: none if it has ended
// and waits for its parent to notice. Not every system lets everybody know.
func commandLine(pid int) (command string, ok bool) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err == nil {
		return strings.TrimRight(strings.ReplaceAll(string(content), "\x00", " "), " "), true
	}
	output, err := exec.Command("ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return strings.TrimSpace(string(output)), err == nil
}
