package embeddedpg

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Children of a killed server may take a moment to exit, and PostgreSQL refuses to start while one is left. A stopped
// child simulates a busy machine. Planted fault: a start that does not wait.
func TestStart_WaitsForTheOrphansOfAKilledServer(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	s := mustStart(t, dir)
	db := open(t, s)
	var orphan int
	if err := db.QueryRow("SELECT pg_backend_pid()").Scan(&orphan); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(syscall.Kill(orphan, syscall.SIGSTOP), syscall.Kill(s.Pid(), syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(orphan, syscall.SIGCONT) }) // or it would never exit
	select {
	case <-s.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("Done is not closed")
	}
	const pause = 500 * time.Millisecond
	began := time.Now()
	time.AfterFunc(pause, func() { _ = syscall.Kill(orphan, syscall.SIGCONT) })
	mustStart(t, dir)
	if took := time.Since(began); took < pause {
		t.Errorf("it took %s, though an orphan existed for %s", took, pause)
	}
}

// Planted fault: the segment's id compared without the key, which matches another server's segment.
func TestHasOrphans_IgnoresOtherServersMemory(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	mustStart(t, dir)
	pidFile := filepath.Join(dataPath(dir), "postmaster.pid")
	if !hasOrphans(pidFile) {
		t.Error("nothing is attached to the memory of a server that runs")
	}
	content, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(content), "\n")
	ids := strings.Fields(lines[6])
	for name, line := range map[string]string{
		"another key": "1 " + ids[1], "another number": ids[0] + " 1", "no number": ids[0], "no line": "",
	} {
		lines[6] = line
		otherFile := filepath.Join(t.TempDir(), "postmaster.pid")
		if err := os.WriteFile(otherFile, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		if hasOrphans(otherFile) {
			t.Errorf("%s: something is attached", name)
		}
	}
	if hasOrphans(filepath.Join(dir, "missing")) {
		t.Error("no file: something is attached")
	}
}
