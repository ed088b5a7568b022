package database

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/database/databasetest"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

// openWith opens pools of a few connections, and returns what is logged.
func openWith(t *testing.T, url, directURL string) (p *Pools, logged string, err error) {
	t.Helper()
	var log strings.Builder
	p, err = Open(t.Context(), Config{URL: url, DirectURL: directURL, QueryConns: 4, FileConns: 2, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err == nil {
		t.Cleanup(func() { _ = p.Close() })
	}
	return p, log.String(), err
}

// A missing setting is an error at the start, not odd errors later. Planted: sessions not compared; no advice when
// PgBouncer refuses the limits.
func TestPgBouncer_WithoutTheDirectURLIsRefused(t *testing.T) {
	t.Parallel()
	direct := pgtest.New(t)
	pooler := databasetest.StartPgBouncer(t, direct, 4)
	tolerant := databasetest.StartPgBouncer(t, direct, 4, "ignore_startup_parameters = lock_timeout, statement_timeout, idle_in_transaction_session_timeout, synchronous_commit")
	for name, c := range map[string]struct{ url, direct, want string }{
		"limits refused":              {pooler, "", "write PostgreSQL's own address into DATABASE_DIRECT_URL"},
		"limits ignored":              {tolerant, "", "leads to a pooler in transaction mode; if it is"},
		"the pooler as direct URL":    {pooler, tolerant, "DATABASE_DIRECT_URL leads to a pooler"},
		"no server at the direct URL": {pooler, "postgres://platform@127.0.0.1:1/platform?sslmode=disable", "DATABASE_DIRECT_URL cannot be reached"},
		"PostgreSQL alone":            {direct, "", ""},
		"pooler and PostgreSQL":       {pooler, direct, ""},
	} {
		_, logged, err := openWith(t, c.url, c.direct)
		if c.want == "" && (err != nil || logged != "") || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q\n%s", name, err, c.want, logged)
		}
	}
}

// The configuration in deploy/ limits the pooler's sessions; without it, a warning is logged. Planted: no connect_query
// in the file; limits not checked.
func TestPgBouncer_LimitsItsSessions(t *testing.T) {
	t.Parallel()
	direct := pgtest.New(t)
	p, logged, err := openWith(t, databasetest.StartPgBouncer(t, direct, 2), direct)
	if err != nil || logged != "" {
		t.Fatalf("%v\n%s", err, logged)
	}
	if got := limitsOf(t, p.Queries); got != "15s 4s 1min" {
		t.Errorf("%q", got)
	}
	// PostgreSQL whose sessions have no limits, in place of a pooler.
	if _, logged, err = openWith(t, direct, direct); err != nil || !strings.Contains(logged, "no time limits") {
		t.Errorf("%v\n%s", err, logged)
	}
}

// Planted: Notify, Sessions or LISTEN at the pooler; Sessions a pool of its own without a pooler.
func TestOpen_PassesThePoolerWhereASessionIsNeeded(t *testing.T) {
	t.Parallel()
	direct := pgtest.New(t)
	pooler := databasetest.StartPgBouncer(t, direct, 2)
	p, _, err := openWith(t, pooler, direct)
	if err != nil {
		t.Fatal(err)
	}
	var commit string // a pooler refuses this setting
	if err := p.Notify.QueryRowContext(t.Context(), `SHOW synchronous_commit`).Scan(&commit); err != nil || commit != "off" {
		t.Errorf("Notify: synchronous_commit %q, %v", commit, err)
	}
	if shared, err := sharesSessions(t.Context(), p.Sessions); err != nil || shared {
		t.Errorf("Sessions: shared %t, %v", shared, err)
	}
	if !strings.HasPrefix(p.ListenURL(), direct) {
		t.Error("LISTEN would go through the pooler")
	}
	alone, _, err := openWith(t, direct, "")
	if err != nil || alone.Sessions != alone.Queries {
		t.Errorf("%v; without a pooler Sessions must be Queries", err)
	}
}

func TestOpen_NeedsConnections(t *testing.T) {
	t.Parallel()
	for _, c := range []Config{{QueryConns: 1, FileConns: 1}, {QueryConns: 2}} {
		if p, err := Open(context.Background(), c); p != nil || err == nil {
			t.Errorf("%+v: no error", c)
		}
	}
}
