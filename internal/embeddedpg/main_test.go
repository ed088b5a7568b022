package embeddedpg

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// ownerVariable makes the test binary a process that owns a server, to be killed by a test.
const ownerVariable = "EMBEDDEDPG_TEST_OWNS"

func TestMain(m *testing.M) {
	if dir := os.Getenv(ownerVariable); dir != "" {
		os.Exit(runOwner(dir))
	}
	os.Exit(m.Run())
}

// runOwner starts a server, prints its process id and its watchdog's, and runs until it is killed or its parent has
// exited.
func runOwner(dir string) int {
	s, err := Start(context.Background(), testOptions(dir))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(s.Pid(), s.process.watchdog.Process.Pid)
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = s.Stop(context.Background())
	return 0
}

func testOptions(dir string) Options {
	return Options{
		DataDir:  dir,
		Logger:   slog.New(slog.DiscardHandler),
		Settings: map[string]string{"fsync": "off", "shared_buffers": "16MB", "max_connections": "10"},
	}
}

// newDataDir returns the path of a folder that does not exist yet, in one that every user can enter: as root,
// PostgreSQL runs as another user.
func newDataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "embeddedpg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "data")
}

func mustStart(t *testing.T, dir string) *Server {
	t.Helper()
	s, err := Start(t.Context(), testOptions(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustStop(t, s) })
	return s
}

func mustStop(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// mustFail starts a server, expects it to fail, and returns the error's text.
func mustFail(t *testing.T, opts Options, want error) string {
	t.Helper()
	s, err := Start(t.Context(), opts)
	if err == nil {
		mustStop(t, s)
		t.Fatal("Start succeeded")
	}
	if want != nil && !errors.Is(err, want) {
		t.Fatalf("Start: %v, want an error that is %q", err, want)
	}
	return err.Error()
}

func open(t *testing.T, s *Server) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", s.DSN(DefaultDatabase))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func mustExec(t *testing.T, db *sql.DB, query string) {
	t.Helper()
	if _, err := db.Exec(query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func query[T any](t *testing.T, db *sql.DB, query string) T {
	t.Helper()
	var value T
	if err := db.QueryRow(query).Scan(&value); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return value
}

// processes returns the server, its children and its watchdog.
func processes(t *testing.T, s *Server, db *sql.DB) []int {
	t.Helper()
	pids := []int{s.Pid(), s.process.watchdog.Process.Pid}
	rows, err := db.Query("SELECT pid FROM pg_stat_activity")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var pid int
		if err := rows.Scan(&pid); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return pids
}

// gone reports whether a process has exited; a zombie has.
func gone(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return true
	}
	command, ok := commandLine(pid)
	return ok && command == ""
}

func waitGone(t *testing.T, limit time.Duration, pids ...int) {
	t.Helper()
	waitFor(t, limit, fmt.Sprintf("the end of processes %v", pids), func() bool {
		return !slices.ContainsFunc(pids, func(pid int) bool { return !gone(pid) })
	})
}

// waitFor polls for a condition that no process signals.
func waitFor(t *testing.T, limit time.Duration, what string, happened func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for !happened() {
		select {
		case <-deadline.C:
			t.Fatalf("waited %s in vain for %s", limit, what)
		case <-retry.C:
		}
	}
}
