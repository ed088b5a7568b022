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

// predecessorTimeout bounds the wait for the server of a killed predecessor to exit.
const predecessorTimeout = 20 * time.Second

// initialize runs initdb if there is no data yet, in a temporary folder that is renamed when it is complete. An
// interrupted start therefore leaves nothing that looks like data.
func (f *folder) initialize(ctx context.Context, bin binaries, id identity, log *serverLog, durable bool) error {
	data := dataPath(f.path)
	leftovers, _ := filepath.Glob(globEscape(data) + ".tmp-*")
	for _, leftover := range leftovers {
		_ = os.RemoveAll(leftover) // may fail if an orphaned initdb still writes; the next start removes it
	}
	if exists(data) {
		if err := f.checkOwned(data); err != nil {
			return err
		}
		if f.dataVersion() == 0 {
			return fmt.Errorf("%w: %s does not hold PostgreSQL data: move it away, or choose another DATA_DIR", ErrDataDir, data)
		}
		return nil
	}

	tmp, err := os.MkdirTemp(f.path, filepath.Base(data)+".tmp-")
	if err != nil {
		return fmt.Errorf("make a folder for initdb: %w", err)
	}
	defer os.RemoveAll(tmp) // does nothing after the rename
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
		return fmt.Errorf("rename the new data folder: %w", err)
	}
	if !durable {
		return nil
	}
	return syncFolder(f.path)
}

// syncFolder makes a rename in a folder durable.
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

// awaitPredecessor waits until no server runs on the data. A server may still run although this process holds the lock:
// its owner was just killed, or its watchdog was killed too. If the server itself was killed, its children may take a
// moment to exit.
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
			// After a reboot the process id may be another process's. PostgreSQL would take that process for a server
			// and refuse to start.
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
			return fmt.Errorf("wait for the previous PostgreSQL (process %d) to exit: %w", pid, context.Cause(ctx))
		case <-timeout.C:
			if !alive {
				return nil // PostgreSQL makes the same check, and reports what to do
			}
			return fmt.Errorf("%w %s: the previous PostgreSQL (process %d) did not exit within %s", ErrInUse, f.path, pid, predecessorTimeout)
		case <-retry.C:
		}
	}
}

// livingPredecessor reads the process id from the first line of postmaster.pid, and reports whether that process is
// alive.
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

// hasOrphans reports whether a process is attached to the shared memory segment of the server that wrote the file.
// PostgreSQL refuses to start while there is one. Only Linux lists the segments. The segment's key is derived from the
// data folder's inode; comparing it excludes another server's segment with the same id after a reboot.
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

// isServer reports whether a command line is that of a server on this data folder.
func (f *folder) isServer(command string) bool {
	return strings.Contains(command+" ", " -D "+dataPath(f.path)+" ")
}

// commandLine returns the arguments of a process, separated by spaces; "" for a zombie. ok is false if the system does
// not reveal them.
func commandLine(pid int) (command string, ok bool) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err == nil {
		return strings.TrimRight(strings.ReplaceAll(string(content), "\x00", " "), " "), true
	}
	output, err := exec.Command("ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return strings.TrimSpace(string(output)), err == nil
}
