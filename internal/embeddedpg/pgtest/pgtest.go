// Package pgtest gives every test its own database on a real PostgreSQL.
//
// A test binary starts one temporary server in TestMain. Each test gets a database on it, cloned from a template that
// is migrated once:
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
//	func TestSomething(t *testing.T) {
//		db := pgtest.Open(t, pgtest.New(t))
//
// All functions are safe for parallel tests. Without PostgreSQL the run fails; no test is skipped. The server does not
// sync to disk: it cannot be used to test durability.
package pgtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/molecule-ai/platform/internal/embeddedpg"
)

const templateDatabase = "pgtest_template"

// settings trade durability for speed.
var settings = map[string]string{
	"fsync":              "off",
	"synchronous_commit": "off",
	"full_page_writes":   "off",
	"shared_buffers":     "64MB",
	"max_connections":    "200",
	"autovacuum_naptime": "1h", // no database exists long enough to need it
}

// cleaner removes folder $1 when the test binary has exited, which closes the script's standard input: after a panic or
// a timeout the binary cannot do it itself. The server has its own watchdog.
const cleaner = `
read -r _
seconds=0
while [ -e "$1/data/postgres/postmaster.pid" ] && [ $seconds -lt 20 ]; do
	sleep 1
	seconds=$((seconds + 1))
done
rm -rf "$1"`

var (
	server   *embeddedpg.Server
	admin    *sql.DB // on the server's default database, to create and drop others
	template = sync.OnceValue(migrateTemplate)
	serial   atomic.Int64
)

// Main runs the tests of a package with a PostgreSQL server and exits; call it from TestMain.
func Main(m *testing.M) {
	os.Exit(Run(m))
}

// Run is Main for a TestMain that has more to clean up: it returns the exit code instead of exiting.
func Run(m *testing.M) (code int) {
	stop, err := startServer()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		return 1
	}
	defer func() {
		if err := stop(); err != nil {
			fmt.Fprintln(os.Stderr, "pgtest:", err)
			code = max(code, 1)
		}
	}()
	return m.Run()
}

// startServer sets server and admin. stop ends both and removes the folder.
func startServer() (stop func() error, err error) {
	dir, err := os.MkdirTemp("", "pgtest-")
	if err != nil {
		return nil, fmt.Errorf("create a folder for the server: %w", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { // as root, PostgreSQL runs as another user
		return nil, errors.Join(fmt.Errorf("create a folder for the server: %w", err), os.RemoveAll(dir))
	}
	cleanerInput, err := startCleaner(dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the cleaner: %w", err), os.RemoveAll(dir))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server, err = embeddedpg.Start(ctx, embeddedpg.Options{
		DataDir:  filepath.Join(dir, "data"),
		Logger:   slog.New(slog.DiscardHandler),
		Settings: settings,
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir), cleanerInput.Close())
	}
	admin, err = sql.Open("postgres", server.DSN(embeddedpg.DefaultDatabase))
	if err != nil {
		return nil, errors.Join(err, server.Stop(ctx), os.RemoveAll(dir), cleanerInput.Close())
	}
	admin.SetMaxOpenConns(4)

	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		return errors.Join(server.Err(), admin.Close(), server.Stop(ctx), os.RemoveAll(dir), cleanerInput.Close())
	}, nil
}

// startCleaner starts the cleaner and returns the pipe to its standard input. The cleaner runs when the pipe is closed,
// at the latest when this process exits.
func startCleaner(dir string) (io.Closer, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command("/bin/sh", "-c", cleaner, "sh", dir)
	cmd.Stdin = r
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C must not reach it
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// Server returns the running server.
func Server() *embeddedpg.Server { return server }

// New creates a database with the newest schema and returns its connection string. The database is dropped at the end
// of the test, even if there are open connections.
func New(t testing.TB) string {
	t.Helper()
	need(t)
	if err := template(); err != nil {
		t.Fatalf("pgtest: migrate the template: %v", err)
	}
	return create(t, " TEMPLATE "+templateDatabase)
}

// Empty creates a database without a schema; otherwise it is like New.
func Empty(t testing.TB) string {
	t.Helper()
	need(t)
	return create(t, "")
}

// Open returns a connection pool that is closed at the end of the test.
func Open(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatalf("pgtest: open %s: %v", dsn, err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func need(t testing.TB) {
	t.Helper()
	if server == nil {
		t.Fatal("pgtest: no server: call pgtest.Main from TestMain")
	}
}

func create(t testing.TB, options string) string {
	t.Helper()
	name := fmt.Sprintf("test_%d", serial.Add(1))
	if _, err := admin.Exec("CREATE DATABASE " + pq.QuoteIdentifier(name) + options); err != nil {
		t.Fatalf("pgtest: create database %s: %v", name, err)
	}
	t.Cleanup(func() {
		if _, err := admin.Exec("DROP DATABASE IF EXISTS " + pq.QuoteIdentifier(name) + " WITH (FORCE)"); err != nil {
			t.Errorf("pgtest: drop database %s: %v", name, err)
		}
	})
	return server.DSN(name)
}
