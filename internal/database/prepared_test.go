package database

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"testing"

	"github.com/lib/pq"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

// openPrepared returns a pool of one connection, and a function that counts its prepared statements.
func openPrepared(t *testing.T, dsn string) (db *sql.DB, count func() int) {
	t.Helper()
	c, err := pq.NewConnector(dsn)
	if err != nil {
		t.Fatal(err)
	}
	db = sql.OpenDB(prepareOnce(c))
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	return db, func() (n int) {
		t.Helper()
		// It has no parameters, so it is not prepared itself.
		if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_prepared_statements`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
}

func queryString(t *testing.T, db interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}, query string, args ...any) string {
	t.Helper()
	var s string
	if err := db.QueryRowContext(t.Context(), query, args...).Scan(&s); err != nil {
		t.Errorf("%s: %v", query, err)
	}
	return s
}

func exec(t *testing.T, db interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
}, query string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
		t.Errorf("%s: %v", query, err)
	}
}

// Planted: a statement not kept; kept under the text of another; Exec and Query preparing it separately.
func TestPrepareOnce_PreparesAStatementOnce(t *testing.T) {
	t.Parallel()
	db, count := openPrepared(t, pgtest.New(t))
	exec(t, db, `CREATE TABLE things (name text)`)
	if n := count(); n != 0 {
		t.Errorf("%d statements without parameters are prepared", n)
	}
	for i := range 3 {
		exec(t, db, `INSERT INTO things VALUES ($1)`, fmt.Sprint(i))
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		exec(t, tx, `INSERT INTO things VALUES ($1)`, "in a transaction")
		if got := queryString(t, tx, `SELECT name FROM things WHERE name = $1`, fmt.Sprint(i)); got != fmt.Sprint(i) {
			t.Errorf("%q, want %d", got, i)
		}
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
	if n := count(); n != 2 {
		t.Errorf("%d statements are prepared, want 2", n)
	}
}

// A statement that is no longer valid costs its connection; the caller sees no error. Planted: each of the two errors
// passed on.
func TestPrepareOnce_AStaleStatementIsPreparedAgain(t *testing.T) {
	t.Parallel()
	db, _ := openPrepared(t, pgtest.New(t))
	exec(t, db, `CREATE TABLE things AS SELECT 'a'::text AS name`)
	const query = `SELECT * FROM things WHERE name = $1`
	for _, change := range []string{
		`DISCARD ALL`,
		`DEALLOCATE ALL`,
		`ALTER TABLE things ALTER COLUMN name TYPE varchar(10)`, // the plan's result has another type
	} {
		if got := queryString(t, db, query, "a"); got != "a" {
			t.Errorf("before %s: %q", change, got)
		}
		exec(t, db, `UPDATE things SET name = $1`, "a")
		exec(t, db, change)
		exec(t, db, `UPDATE things SET name = $1`, "a")
		if got := queryString(t, db, query, "a"); got != "a" {
			t.Errorf("after %s: %q", change, got)
		}
	}
}

// A transaction cannot continue on another connection: it fails, once. Planted: the connection kept.
func TestPrepareOnce_AStaleStatementFailsOneTransaction(t *testing.T) {
	t.Parallel()
	db, _ := openPrepared(t, pgtest.New(t))
	try := func() error {
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			return err
		}
		return errors.Join(tx.QueryRowContext(t.Context(), `SELECT $1::int`, 1).Scan(new(int)), tx.Rollback())
	}
	if err := try(); err != nil {
		t.Fatal(err)
	}
	exec(t, db, `DISCARD ALL`)
	if err := try(); !errors.Is(err, driver.ErrBadConn) {
		t.Errorf("after DISCARD ALL: %v", err)
	}
	if err := try(); err != nil {
		t.Errorf("and again: %v", err)
	}
}

// A connection whose statement was cancelled is not used again: the cancel request may still be on its way. Other
// connections are. Planted: it returned to the pool; every connection dropped.
func TestPrepareOnce_ACancelledConnectionIsDropped(t *testing.T) {
	t.Parallel()
	db, _ := openPrepared(t, pgtest.New(t))
	backend := func(ctx context.Context, cancel context.CancelFunc) (pid int) {
		t.Helper()
		rows, err := db.QueryContext(ctx, `SELECT pg_backend_pid() + $1::int`, 0)
		if err != nil {
			t.Fatal(err)
		}
		rows.Next()
		if err := rows.Scan(&pid); err != nil {
			t.Error(err)
		}
		cancel()
		rows.Close()
		return pid
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := backend(t.Context(), func() {})
	if again := backend(ctx, func() {}); again != first {
		t.Error("a connection was dropped without a cancelled statement")
	}
	cancel() // after the connection was returned
	if again := backend(context.WithCancel(t.Context())); again != first {
		t.Error("a connection was dropped because a request ended after its last statement")
	}
	if again := backend(t.Context(), func() {}); again == first {
		t.Error("a connection was used again although its statement was cancelled")
	}
}

// Planted: no bound; a statement evicted but not closed.
func TestPrepareOnce_KeepsABoundedNumber(t *testing.T) {
	t.Parallel()
	db, count := openPrepared(t, pgtest.New(t))
	for i := range 250 {
		if got := queryString(t, db, fmt.Sprintf(`SELECT $1 || '%d'`, i), "x"); got != fmt.Sprintf("x%d", i) {
			t.Errorf("%d: %q", i, got)
		}
	}
	if n := count(); n != 100 {
		t.Errorf("%d statements are prepared, want 100", n)
	}
}

func TestPrepareOnce_ReturnsTheErrorsOfStatements(t *testing.T) {
	t.Parallel()
	db, _ := openPrepared(t, pgtest.New(t))
	for _, query := range []string{`SELEC $1`, `SELECT 1 / $1::int`} {
		var n int
		err := db.QueryRowContext(t.Context(), query, 0).Scan(&n)
		if pq.As(err) == nil {
			t.Errorf("%s: %v, want PostgreSQL's error", query, err)
		}
		if _, err := db.ExecContext(t.Context(), query, 0); pq.As(err) == nil {
			t.Errorf("%s: %v, want PostgreSQL's error", query, err)
		}
	}
	if got := queryString(t, db, `SELECT $1::text`, "still works"); got != "still works" {
		t.Errorf("%q", got)
	}
}
