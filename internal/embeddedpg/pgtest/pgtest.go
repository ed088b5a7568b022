// Package pgtest gives every test a database of its own on a real PostgreSQL.
//
// A test binary starts one throw-away server in TestMain, and each test a database in it,
// cloned from a template that was migrated once:
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
//	func TestSomething(t *testing.T) {
//		db := pgtest.Open(t, pgtest.New(t))
//
// All of it is safe for parallel tests. A machine without PostgreSQL fails the run; nothing
// is ever skipped. The server keeps nothing on disk for good: it is no place to test
// durability.
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
	"autovacuum_naptime": "1h", // nothing lives long enough to need it
}

// cleaner removes folder $1 when the test binary is gone, which closes its standard input:
// a test that panics or runs into its timeout leaves no chance to do it here. The server has
// a watchdog of its own.
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

// Run is Main for a TestMain that has something else to clean up: it returns the exit code.
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

// startServer sets server and admin; the function it returns ends both and removes the
// folder.
func startServer() (stop func() error, err error) {
	dir, err := os.MkdirTemp("", "pgtest-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the server: %w", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { // as root, PostgreSQL runs as another user
		return nil, errors.Join(fmt.Errorf("make a folder for the server: %w", err), os.RemoveAll(dir))
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

// startCleaner returns the pipe whose closing, by whatever end of this process, lets the
// cleaner go to work.
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

// New makes a database with the newest schema and returns its connection string. It is
// dropped at the end of the test, connections included.
func New(t testing.TB) string {
	t.Helper()
	need(t)
	if err := template(); err != nil {
		t.Fatalf("pgtest: migrate the template: %v", err)
	}
	return create(t, " TEMPLATE "+templateDatabase)
}

// Empty is New without a schema.
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
