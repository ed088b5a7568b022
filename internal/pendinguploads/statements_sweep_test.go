package pendinguploads_test

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// The pinned statements of the sweep.
const (
	sweepWhich = `WITH picked AS MATERIALIZED (%s LIMIT $2 FOR UPDATE SKIP LOCKED), batch AS (
    SELECT file_id, sum(size_bytes) OVER (ORDER BY file_id) - size_bytes AS bytes_before FROM picked
), gone AS (
    DELETE FROM pending_uploads WHERE file_id = ANY(ARRAY(SELECT file_id FROM batch WHERE bytes_before < $3)) RETURNING size_bytes
)
SELECT count(*), coalesce(sum(size_bytes), 0), (SELECT count(*) FROM picked) FROM gone`

	sweepReservations = `
DELETE FROM upload_reservations WHERE id = ANY(ARRAY(
SELECT id FROM upload_reservations WHERE expires_at <= now() LIMIT $1 FOR UPDATE SKIP LOCKED))`

	sweepKeys = `
DELETE FROM upload_keys WHERE ctid = ANY(ARRAY(
SELECT ctid FROM upload_keys WHERE expires_at <= now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))`

	beginReclaim = "SELECT set_config('statement_timeout', '0', false) IS NOT NULL AND pg_try_advisory_lock(20260601, 1)"
	reclaim      = "VACUUM pending_uploads, pending_upload_chunks"
	endReclaim   = "SELECT pg_advisory_unlock_all(); RESET statement_timeout"

	sweepable = `
SELECT count(*) FILTER (WHERE acked_at IS NOT NULL), count(*) FILTER (WHERE acked_at IS NULL),
coalesce(sum(size_bytes) FILTER (WHERE acked_at IS NOT NULL), 0), coalesce(sum(size_bytes) FILTER (WHERE acked_at IS NULL), 0)
FROM pending_uploads WHERE acked_at < now() - $1 * interval '1 microsecond' OR acked_at IS NULL AND expires_at <= now()`
)

var (
	sweepAcked = fmt.Sprintf(sweepWhich,
		"SELECT file_id, size_bytes FROM pending_uploads WHERE acked_at < now() - $1 * interval '1 microsecond' ORDER BY acked_at")
	sweepExpired = fmt.Sprintf(sweepWhich, "SELECT file_id, size_bytes FROM pending_uploads "+
		"WHERE acked_at IS NULL AND expires_at <= now() - $1 * interval '1 microsecond' ORDER BY expires_at")
)

func TestSweep_Statements(t *testing.T) {
	t.Parallel()
	counts := func(files, bytes, picked int64) *sqlmock.Rows {
		return sqlmock.NewRows([]string{"files", "bytes", "picked"}).AddRow(files, bytes, picked)
	}
	steps := func(m mocked) []func(rows [2]*sqlmock.Rows, over [2]int64, err error) {
		query := func(i int, statement string, age int64) func([2]*sqlmock.Rows, [2]int64, error) {
			return func(rows [2]*sqlmock.Rows, _ [2]int64, err error) {
				e := m.db.ExpectQuery(statement).WithArgs(age, 200, 64<<20)
				if err != nil {
					e.WillReturnError(err)
					return
				}
				e.WillReturnRows(rows[i])
			}
		}
		execute := func(i int, statement string) func([2]*sqlmock.Rows, [2]int64, error) {
			return func(_ [2]*sqlmock.Rows, over [2]int64, err error) {
				m.db.ExpectExec(statement).WithArgs(2000).WillReturnResult(driver.RowsAffected(over[i])).WillReturnError(err)
			}
		}
		return []func([2]*sqlmock.Rows, [2]int64, error){
			query(0, sweepAcked, 3_600_000_000), query(1, sweepExpired, 0), execute(0, sweepReservations), execute(1, sweepKeys),
		}
	}
	for name, c := range map[string]struct {
		rows [2]*sqlmock.Rows
		over [2]int64
		more bool
	}{
		"no more":           {rows: [2]*sqlmock.Rows{counts(3, 30, 3), counts(4, 40, 4)}, over: [2]int64{1, 1999}},
		"many acked":        {rows: [2]*sqlmock.Rows{counts(3, 30, 200), counts(4, 40, 4)}, more: true},
		"long expired":      {rows: [2]*sqlmock.Rows{counts(3, 30, 3), counts(4, 40, 5)}, more: true},
		"many reservations": {rows: [2]*sqlmock.Rows{counts(3, 30, 3), counts(4, 40, 4)}, over: [2]int64{2000, 0}, more: true},
		"many keys":         {rows: [2]*sqlmock.Rows{counts(3, 30, 3), counts(4, 40, 4)}, over: [2]int64{0, 2000}, more: true},
	} {
		m := newMocked(t)
		for _, succeed := range steps(m) {
			succeed(c.rows, c.over, nil)
		}
		want := pendinguploads.Swept{Acked: 3, AckedBytes: 30, Expired: 4, ExpiredBytes: 40, More: c.more}
		if swept, err := m.Sweep(t.Context(), time.Hour); err != nil || swept != want {
			t.Errorf("%s: %+v, %v; want %+v", name, swept, err, want)
		}
	}
	// The files deleted before the failure are reported.
	for failing := range 4 {
		m := newMocked(t)
		s := steps(m)
		for _, succeed := range s[:failing] {
			succeed([2]*sqlmock.Rows{counts(3, 30, 3), counts(4, 40, 4)}, [2]int64{}, nil)
		}
		s[failing]([2]*sqlmock.Rows{}, [2]int64{}, errDatabase)
		swept, err := m.Sweep(t.Context(), time.Hour)
		if !errors.Is(err, errDatabase) || (swept.Acked == 3) != (failing > 0) || (swept.Expired == 4) != (failing > 1) {
			t.Errorf("statement %d fails: %+v, %v", failing, swept, err)
		}
	}
}

func TestSweepable_Statement(t *testing.T) {
	t.Parallel()
	m := newMocked(t)
	m.db.ExpectQuery(sweepable).WithArgs(int64(3_600_000_000)).WillReturnRows(sqlmock.NewRows([]string{"a", "b", "c", "d"}).AddRow(1, 2, 30, 40))
	want := pendinguploads.Swept{Acked: 1, Expired: 2, AckedBytes: 30, ExpiredBytes: 40}
	if due, err := m.Sweepable(t.Context(), time.Hour); err != nil || due != want {
		t.Errorf("%+v, %v; want %+v", due, err, want)
	}
	m.db.ExpectQuery(sweepable).WillReturnError(errDatabase)
	if due, err := m.Sweepable(t.Context(), time.Hour); due != (pendinguploads.Swept{}) || !errors.Is(err, errDatabase) {
		t.Errorf("%+v, %v; want the database's error", due, err)
	}
}

func TestReclaim_Statements(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		busy               bool
		begin, vacuum, end error
	}{
		"reclaimed": {}, "another replica does it": {busy: true},
		"no begin": {begin: errDatabase}, "no vacuum": {vacuum: errDatabase}, "no end": {end: errDatabase},
	} {
		m := newMocked(t)
		begin := m.sessions.ExpectQuery(beginReclaim)
		if c.begin != nil {
			begin.WillReturnError(c.begin)
		} else {
			begin.WillReturnRows(sqlmock.NewRows([]string{""}).AddRow(!c.busy))
		}
		if c.begin == nil && !c.busy {
			m.sessions.ExpectExec(reclaim).WillReturnResult(driver.RowsAffected(0)).WillReturnError(c.vacuum)
		}
		m.sessions.ExpectExec(endReclaim).WillReturnResult(driver.RowsAffected(0)).WillReturnError(c.end)
		if c.end != nil {
			m.sessions.ExpectClose() // a connection without a statement_timeout is not reused
		}
		if err := m.Reclaim(t.Context()); errors.Is(err, errDatabase) != (c.begin != nil || c.vacuum != nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
