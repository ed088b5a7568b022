package server

import (
	"testing"

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
