package database

import (
	"context"
	"database/sql"
	"net"
	"regexp"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

// limitsOf returns the time limits of the sessions of db.
func limitsOf(t *testing.T, db *sql.DB) (limits string) {
	t.Helper()
	const show = `
		SELECT concat_ws(' ', current_setting('idle_in_transaction_session_timeout'), current_setting('lock_timeout'),
			current_setting('statement_timeout'))`
	if err := db.QueryRowContext(t.Context(), show).Scan(&limits); err != nil {
		t.Error(err)
	}
	return limits
}

// A replica that freezes between its inbox row and its commit must not block the others indefinitely. Planted: a pool
// without the limits; limits on the pool that migrates.
func TestOpen_LimitsWhatServesAndNotWhatMigrates(t *testing.T) {
	t.Parallel()
	dsn := pgtest.New(t)
	p, _, err := openWith(t, dsn, "")
	if err != nil {
		t.Fatal(err)
	}
	operators, _, err := openWith(t, dsn+" lock_timeout=7000", "")
	if err != nil {
		t.Fatal(err)
	}
	command, err := OpenCommand(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer command.Close()
	for name, c := range map[string]struct {
		db   *sql.DB
		want string
	}{
		"Queries":                    {p.Queries, "15s 4s 1min"},
		"FileWrites":                 {p.FileWrites, "15s 4s 1min"},
		"Metrics":                    {p.Metrics, "15s 4s 1min"},
		"Notify":                     {p.Notify, "15s 4s 1min"},
		"a command":                  {command, "0 0 0"},
		"as the operator's URL says": {operators.Queries, "15s 7s 1min"},
	} {
		if got := limitsOf(t, c.db); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// The sizes are the table of the package comment. Planted: a pool of another size; a sixth pool.
func TestOpen_TakesAsManyConnectionsAsItSays(t *testing.T) {
	t.Parallel()
	dsn := pgtest.New(t)
	for name, c := range map[string]struct {
		directURL string
		total     int
	}{"alone": {"", 4 + 2 + 3}, "with a direct URL": {dsn, 4 + 2 + 3 + 3}} {
		p, _, err := openWith(t, dsn, c.directURL)
		if err != nil {
			t.Fatal(err)
		}
		total, seen := 0, map[*sql.DB]bool{}
		for _, db := range []*sql.DB{p.Queries, p.FileWrites, p.Metrics, p.Notify, p.Sessions} {
			if !seen[db] {
				total += db.Stats().MaxOpenConnections
			}
			seen[db] = true
		}
		if total != c.total || p.Queries.Stats().MaxOpenConnections != 4 || p.FileWrites.Stats().MaxOpenConnections != 2 {
			t.Errorf("%s: %d connections, want %d", name, total, c.total)
		}
	}
}

// The first of two servers is a machine that is gone, or that hangs: within the deadline of a lookup the second answers.
// Planted: the time limit of a single server for each.
func TestOpenPool_GoesOnToTheNextServer(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	dsn := pgtest.New(t)
	_, port, _ := net.SplitHostPort(silent.Addr().String())
	first := regexp.MustCompile(`host='?([^' ]+)'? port='?(\d+)'?`).ReplaceAllString(dsn, "host='127.0.0.1,$1' port='"+port+",$2'")
	if first == dsn {
		t.Fatalf("%q has no host and port", dsn)
	}
	db, err := openPool(first, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for range 3 { // a busy server may need longer to start a session
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // that of a token lookup
		err = db.PingContext(ctx)
		cancel()
		if err == nil {
			break
		}
	}
	if err != nil {
		t.Error(err)
	}
	if got := limitConnectTime(first); got != first+" connect_timeout=2" {
		t.Errorf("LISTEN: %q", got)
	}
}
