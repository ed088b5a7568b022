package database

import (
	"database/sql"
	"errors"
	"testing"

	"github.com/lib/pq"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// A commit with a warning is an error; one with a notice, or with a warning of an earlier statement, is not. A trigger
// that warns at commit stands for the cancelled wait for a standby, which internal/testcluster tests.
// Planted: notices ignored; those of earlier statements counted.
func TestConfirmCommits_ACommitThatWarnsIsAnError(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Empty(t)
	c, err := pq.NewConnector(dsn)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(prepareOnce(confirmCommits(c)))
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	if _, err := db.ExecContext(t.Context(), `CREATE TABLE notices (level text);
		CREATE FUNCTION notify() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF NEW.level = 'warning' THEN RAISE WARNING 'careful'; ELSE RAISE NOTICE 'all is well'; END IF;
			RETURN NEW;
		END $$;
		CREATE CONSTRAINT TRIGGER late AFTER INSERT ON notices DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION notify()`); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		before, level string
		want          error
	}{{"", "notice", nil}, {"", "warning", ErrUnconfirmed}, {"DO $$ BEGIN RAISE WARNING 'early'; END $$", "notice", nil}} {
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.before != "" {
			if _, err := tx.ExecContext(t.Context(), c.before); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := tx.ExecContext(t.Context(), `INSERT INTO notices VALUES ($1)`, c.level); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	tx, err := db.BeginTx(t.Context(), nil)
	if err == nil {
		err = tx.Rollback()
	}
	var n int
	if err = errors.Join(err, db.QueryRowContext(t.Context(), `SELECT count(*) FROM notices`).Scan(&n)); err != nil || n != 3 {
		t.Errorf("%d rows, %v", n, err)
	}
}
