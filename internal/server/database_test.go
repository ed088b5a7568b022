package server

import (
	"context"
	"net"
	"regexp"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

// One replica that freezes between its inbox row and its commit must not hold up the others for
// good. Planted: a pool without the limits; limits on the pool that migrates.
func TestOpenPool_BoundsWhatServesAndNotWhatMigrates(t *testing.T) {
	t.Parallel()
	dsn := pgtest.New(t)
	for name, c := range map[string]struct {
		dsn     string
		options []poolOption
		want    string
	}{
		"serving":                      {dsn, []poolOption{bounded}, "15s 20s 1min"},
		"staging":                      {dsn, []poolOption{bounded, binary}, "15s 20s 1min"},
		"migrating":                    {dsn, nil, "0 0 0"},
		"as the operator's URL has it": {dsn + " lock_timeout=7000", []poolOption{bounded}, "15s 7s 1min"},
	} {
		db, err := openPool(c.dsn, 1, c.options...)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		var got string
		const show = `SELECT concat_ws(' ', current_setting('idle_in_transaction_session_timeout'), current_setting('lock_timeout'),
			current_setting('statement_timeout'))`
		if err := db.QueryRow(show).Scan(&got); err != nil || got != c.want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
}

// The first of two servers is a machine that is gone, or that hangs: what is asked for within the patience of a
// lookup comes from the second. Planted: the time of a single server for each.
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
	for range 3 { // a busy server may take more than its time to start a session
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // as a token is looked up
		err = db.PingContext(ctx)
		cancel()
		if err == nil {
			break
		}
	}
	if err != nil {
		t.Error(err)
	}
	if got := listenDSN(first); got != first+" connect_timeout=2" {
		t.Errorf("listening: %q", got)
	}
}
