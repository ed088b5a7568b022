package embeddedpg

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestStart_ReusesExistingData(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)

	first := mustStart(t, dir)
	mustExec(t, open(t, first), "CREATE TABLE kept AS SELECT 42 AS answer")
	mustStop(t, first)

	second := mustStart(t, dir)
	if answer := query[int](t, open(t, second), "SELECT answer FROM kept"); answer != 42 {
		t.Errorf("the table holds %d, want 42", answer)
	}
}

func TestStart_IsDurableAndUTF8ByDefault(t *testing.T) {
	t.Parallel()
	s, err := Start(t.Context(), Options{DataDir: newDataDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustStop(t, s) })
	db := open(t, s)
	for name, want := range map[string]string{
		"fsync":              "on",
		"synchronous_commit": "on",
		"full_page_writes":   "on",
		"data_checksums":     "on",
		"max_connections":    "100",
		"shared_buffers":     "128MB",
		"server_encoding":    "UTF8",
		"TimeZone":           "UTC",
	} {
		if got := query[string](t, db, "SHOW "+name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

func TestStart_ListensNowhereButOnItsSocket(t *testing.T) {
	t.Parallel()
	opts := testOptions(newDataDir(t))
	opts.Settings["listen_addresses"] = "127.0.0.1" // must have no effect
	opts.Settings["port"] = "1"
	s, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustStop(t, s) })
	db := open(t, s)
	if addresses := query[string](t, db, "SHOW listen_addresses"); addresses != "" {
		t.Errorf("listen_addresses is %q", addresses)
	}
	sockets := query[string](t, db, "SHOW unix_socket_directories")
	info, err := os.Stat(sockets)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("mode of %s is %o", sockets, info.Mode().Perm())
	}
	for _, name := range []string{"lock", "postgres.log"} {
		info, err := os.Stat(filepath.Join(opts.DataDir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("mode of %s is %o", name, info.Mode().Perm())
		}
	}
	if info, err := os.Stat(opts.DataDir); err != nil || info.Mode().Perm()&0o067 != 0 {
		t.Errorf("the data folder is open to others: %v, %v", info.Mode(), err)
	}
}

// The second path is too long for a socket. Both have characters that are special in connection strings, globs or
// shells.
func TestDSN_WorksForLibPQAndPsqlAndOddPaths(t *testing.T) {
	t.Parallel()
	for name, below := range map[string]string{
		"short": "it's a \\ path",
		"long":  strings.Repeat("long [and] \"odd\"; it's\\ true*", 4) + "/" + strings.Repeat("x", 107),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := mustStart(t, filepath.Join(newDataDir(t), below))
			if got := query[string](t, open(t, s), "SELECT current_database()"); got != DefaultDatabase {
				t.Errorf("connected to database %s, want %s", got, DefaultDatabase)
			}
			output, err := exec.Command("psql", s.DSN(DefaultDatabase), "-XAtc", "SELECT 6*7").CombinedOutput()
			if err != nil || strings.TrimSpace(string(output)) != "42" {
				t.Errorf("psql: %s (%v)", output, err)
			}
			mustStop(t, s)
			if name != "short" && exists(s.socketDir.path) {
				t.Errorf("the temporary folder %s is left", s.socketDir.path)
			}
		})
	}
}

func TestStop_LeavesNoProcessAndCanBeRepeated(t *testing.T) {
	t.Parallel()
	s := mustStart(t, newDataDir(t))
	db := open(t, s) // an open connection must not delay the stop
	pids := processes(t, s, db)
	if len(pids) < 5 {
		t.Fatalf("only %d processes: is this list complete?", len(pids))
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() { mustStop(t, s) })
	}
	all.Wait()
	for _, pid := range pids {
		if !gone(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
	mustStop(t, s)
	select {
	case <-s.Done():
	default:
		t.Error("Done is not closed")
	}
	if err := s.Err(); err != nil {
		t.Errorf("Err after Stop: %v", err)
	}
}

func TestStop_ShutsDownImmediatelyWhenItsContextIsDone(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	s := mustStart(t, dir)
	pids := processes(t, s, open(t, s))
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Stop(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("Stop: %v, want its context's error", err)
	}
	for _, pid := range pids {
		if !gone(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
	log, err := os.ReadFile(logPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), "received immediate shutdown request") {
		t.Errorf("the server got no immediate shutdown request; its log: %s", log)
	}
}

func TestDone_ClosesWhenPostgreSQLIsKilled(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	s := mustStart(t, dir)
	pids := processes(t, s, open(t, s))
	if err := s.Err(); err != nil {
		t.Errorf("Err while it runs: %v", err)
	}
	if err := syscall.Kill(s.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("Done is not closed")
	}
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("Err: %v, want one that says it was killed", err)
	}
	mustStart(t, dir) // its orphans may still be there
	waitGone(t, 10*time.Second, pids...)
}

func TestStart_ReportsWhyPostgreSQLDidNotStart(t *testing.T) {
	t.Parallel()
	opts := testOptions(newDataDir(t))
	mustStop(t, mustStart(t, opts.DataDir)) // initdb is not part of the measured time
	opts.Settings["no_such_setting"] = "1"
	began := time.Now()
	text := mustFail(t, opts, nil)
	if !strings.Contains(text, `unrecognized configuration parameter "no_such_setting"`) {
		t.Errorf("Start: %s", text)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	delete(opts.Settings, "no_such_setting")
	mustStart(t, opts.DataDir)
}

func TestStart_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, testOptions(dir)); !errors.Is(err, context.Canceled) {
		t.Errorf("Start: %v", err)
	}

	// A socket without a server behind it: PostgreSQL is never ready.
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	s := &Server{socketDir: socketDir{path: t.TempDir()}, process: &child{exited: make(chan struct{})}}
	listener, err := net.Listen("unix", filepath.Join(s.socketDir.path, ".s.PGSQL."+port))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := s.prepare(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("prepare: %v", err)
	}
}
