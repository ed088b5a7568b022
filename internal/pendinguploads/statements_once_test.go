package pendinguploads_test

import (
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// The pinned statements of quotas and keys.
const (
	reserveUpload = "SELECT reservation, used_files, used_bytes FROM reserve_upload($1, $2, $3, $4, $5, $6 * interval '1 microsecond')"

	lockUsage = "SELECT pg_advisory_xact_lock(hashtextextended($1, 20260601))"

	countUsage = `
SELECT coalesce(sum(u.n), 0), coalesce(sum(u.bytes), 0) FROM (
  SELECT 1 AS n, size_bytes AS bytes FROM pending_uploads WHERE workspace_id = $1 AND acked_at IS NULL AND expires_at > clock_timestamp()
  UNION ALL SELECT files, bytes FROM upload_reservations WHERE workspace_id = $1 AND expires_at > clock_timestamp()) u`

	useReservation = "DELETE FROM upload_reservations WHERE id = $1 AND expires_at > clock_timestamp() + $2 * interval '1 microsecond'"

	releaseReservation = "DELETE FROM upload_reservations WHERE id = $1"

	lockKey = "SELECT pg_try_advisory_xact_lock(hashtextextended($1 || $2, 20260601))"

	findKey = "SELECT fingerprint, files::text FROM upload_keys WHERE workspace_id = $1 AND key = $2 AND expires_at > now()"

	confirmKey = "UPDATE upload_keys SET expires_at = expires_at WHERE workspace_id = $1 AND key = $2"

	insertKey = `
INSERT INTO upload_keys (workspace_id, key, fingerprint, files, expires_at)
VALUES ($1, $2, $3, $4, clock_timestamp() + $5 * interval '1 microsecond')
ON CONFLICT (workspace_id, key) DO UPDATE SET fingerprint = excluded.fingerprint, files = excluded.files, expires_at = excluded.expires_at`
)

var (
	reservationID = uuid.MustParse("44444444-4444-4444-8444-444444444444")
	fullDay       = int64(24 * 60 * 60 * 1_000_000) // in microseconds

	// The stored answer, byte for byte: a platform replays what the version before it stored.
	keptAnswer = `[{"ID":"22222222-2222-4222-8222-222222222222","Workspace":"11111111-1111-4111-8111-111111111111","Name":"a.txt",` +
		`"MIMEType":"text/plain","Size":5,"SHA256":[44,242,77,186,95,176,163,14,38,232,59,42,197,185,226,158,27,22,30,92,31,167,66,94,115,4,51,98,147,139,152,36],` +
		`"CreatedAt":"2026-05-05T10:00:00.123456Z","FetchedAt":null,"AckedAt":null,"ExpiresAt":"2026-05-05T11:00:00.123456Z"}]`

	// A fingerprint hashes names, types, sizes and digests, each on a line.
	largeAnswer = strings.NewReplacer(`"Size":5`, `"Size":1048577`, `[44,242,77,186,95,176,163,14,38,232,59,42,197,185,226,158,27,22,30,92,31,167,66,94,115,4,51,98,147,139,152,36]`,
		strings.ReplaceAll(fmt.Sprint(sha256.Sum256(largeBytes)), " ", ",")).Replace(keptAnswer)
	largeFingerprint = sha256.Sum256(fmt.Appendf(nil, "a.txt\ntext/plain\n1048577\n%x\n", sha256.Sum256(largeBytes)))

	helloFingerprint = sha256.Sum256([]byte("a.txt\ntext/plain\n5\n2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\n"))
)

func withQuota() pendinguploads.Limits {
	limits := testLimits
	limits.QuotaBytes = 2 << 20
	return limits
}

// large needs a reservation; hello is written while the quota is locked.
func large() []pendinguploads.NewFile {
	return []pendinguploads.NewFile{newFile("a.txt", largeBytes)}
}

var largeBytes = make([]byte, 1<<20+1)

func hello() []pendinguploads.NewFile {
	return []pendinguploads.NewFile{newFile("a.txt", []byte("hello"))}
}

func insertedRow(expires time.Time) *sqlmock.Rows {
	return sqlmock.NewRows([]string{"file_id", "created_at", "expires_at"}).AddRow(fileIDs[0].String(), createdAt, expires)
}

func keyRow(fingerprint []byte, files string) *sqlmock.Rows {
	return sqlmock.NewRows([]string{"fingerprint", "files"}).AddRow(fingerprint, files)
}

func reserved(id any, files, bytes int64) *sqlmock.Rows {
	return sqlmock.NewRows([]string{"reservation", "used_files", "used_bytes"}).AddRow(id, files, bytes)
}

// onceSteps returns the expectations, in order, of staging with a key in a workspace with a quota.
func (m mocked) onceSteps(reserves bool) (names []string, expect []func(err error)) {
	step := func(name string, f func(err error)) { names, expect = append(names, name), append(expect, f) }
	query := func(name string, mock sqlmock.Sqlmock, statement string, rows *sqlmock.Rows, args ...driver.Value) {
		step(name, func(err error) {
			e := mock.ExpectQuery(statement).WithArgs(args...)
			if err != nil {
				e.WillReturnError(err)
				return
			}
			e.WillReturnRows(rows)
		})
	}
	execute := func(name, statement string, args ...driver.Value) {
		step(name, func(err error) {
			m.staging.ExpectExec(statement).WithArgs(args...).WillReturnResult(driver.RowsAffected(1)).WillReturnError(err)
		})
	}
	content, fingerprint, answer := []byte("hello"), helloFingerprint, keptAnswer
	if reserves {
		content, fingerprint, answer = largeBytes, largeFingerprint, largeAnswer
	}
	digest := sha256.Sum256(content)
	step("begin", func(err error) { m.staging.ExpectBegin().WillReturnError(err) })
	query("lock key", m.staging, lockKey, sqlmock.NewRows([]string{""}).AddRow(true), workspaceID.String(), "key")
	query("find key", m.staging, findKey, sqlmock.NewRows([]string{"fingerprint", "files"}), workspaceID, "key")
	if reserves {
		query("reserve", m.sessions, reserveUpload, reserved(reservationID.String(), 1, 60), workspaceID, 1, len(content), int64(1<<63-1), 2<<20, int64(1_200_000_000))
	} else {
		execute("lock usage", lockUsage, workspaceID.String())
		query("count usage", m.staging, countUsage, used(1, 2<<20-5), workspaceID)
	}
	query("insert", m.staging, insertFile, insertedRow(expiresAt), workspaceID, "a.txt", "text/plain", len(content), digest[:],
		content[:min(len(content), 1<<20)], int64(3_600_000_000))
	if reserves {
		execute("insert chunk", insertChunk, fileIDs[0], 1, content[1<<20:])
		execute("use reservation", useReservation, reservationID, int64(300_000_000))
	}
	execute("remember key", insertKey, workspaceID, "key", fingerprint[:], answer, fullDay)
	execute("append", appendRows, workspaceID, 1)
	step("commit", func(err error) { m.staging.ExpectCommit().WillReturnError(err) })
	return names, expect
}

func used(files, bytes int64) *sqlmock.Rows {
	return sqlmock.NewRows([]string{"used_files", "used_bytes"}).AddRow(files, bytes)
}

func uploadOf(reserves bool) []pendinguploads.NewFile {
	if reserves {
		return large()
	}
	return hello()
}

// The reservation precedes the first byte and the key follows the last; everything is committed together.
// Planted: the key stored after the commit; the reservation made in the transaction of the files, where
// other uploads do not see it; the usage counted before the lock, or on the other pool.
func TestStageOnce_StatementsInTheirOrder(t *testing.T) {
	t.Parallel()
	for _, reserves := range []bool{false, true} {
		m := newMockedWith(t, withQuota())
		_, expect := m.onceSteps(reserves)
		for _, succeed := range expect {
			succeed(nil)
		}
		staged, replayed, err := m.StageOnce(t.Context(), workspaceID, "key", uploadOf(reserves))
		if err != nil || replayed || len(staged) != 1 || staged[0].ID != fileIDs[0] {
			t.Errorf("%+v, replayed %t, %v", staged, replayed, err)
		}
	}
}

// Whatever fails, the transaction is rolled back and the reservation, if any, is released.
func TestStageOnce_EachStatementMayFail(t *testing.T) {
	t.Parallel()
	for _, reserves := range []bool{false, true} {
		names, _ := newMocked(t).onceSteps(reserves)
		for failing, name := range names {
			t.Run(fmt.Sprintf("%s, reserves %t", name, reserves), func(t *testing.T) {
				t.Parallel()
				m := newMockedWith(t, withQuota())
				_, expect := m.onceSteps(reserves)
				for _, succeed := range expect[:failing] {
					succeed(nil)
				}
				expect[failing](errDatabase)
				if name != "begin" && name != "commit" {
					m.staging.ExpectRollback()
				}
				if reserves && failing > 3 {
					m.sessions.ExpectExec(releaseReservation).WithArgs(reservationID).WillReturnResult(driver.RowsAffected(1))
				}
				staged, replayed, err := m.StageOnce(t.Context(), workspaceID, "key", uploadOf(reserves))
				if staged != nil || replayed || !errors.Is(err, errDatabase) {
					t.Errorf("%d files, replayed %t, %v; want the database's error", len(staged), replayed, err)
				}
			})
		}
	}
}

// Planted: less than instead of at most.
func TestStage_IsRefusedWhenTheQuotaIsExceeded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		reserves bool
		rows     *sqlmock.Rows
	}{{false, used(1, 2<<20-4)}, {true, reserved(nil, 1, 1<<20)}} {
		m := newMockedWith(t, withQuota())
		m.staging.ExpectBegin()
		if c.reserves {
			m.sessions.ExpectQuery(reserveUpload).WillReturnRows(c.rows)
		} else {
			m.staging.ExpectExec(lockUsage).WillReturnResult(driver.RowsAffected(1))
			m.staging.ExpectQuery(countUsage).WillReturnRows(c.rows)
		}
		m.staging.ExpectRollback()
		if staged, err := m.Stage(t.Context(), workspaceID, uploadOf(c.reserves)); staged != nil || !errors.Is(err, pendinguploads.ErrQuota) {
			t.Errorf("reserves %t: %d files, %v", c.reserves, len(staged), err)
		}
	}
}

// An upload that waits for its turn holds no connection. Planted: the turn not released, so that the fifth
// of 10 waits forever.
func TestStage_LargeUploadsTakeTurns(t *testing.T) {
	t.Parallel()
	m := newMocked(t)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if staged, err := m.Stage(over, workspaceID, large()); staged != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("%d files, %v; want the context's error", len(staged), err)
	}
	for range 10 {
		m.staging.ExpectBegin().WillReturnError(errDatabase)
		if staged, err := m.Stage(t.Context(), workspaceID, large()); staged != nil || !errors.Is(err, errDatabase) {
			t.Fatalf("%d files, %v", len(staged), err)
		}
	}
}

// A replay is committed too: the first commit may not have reached the standby. Planted: a replay without
// a write, or without the commit.
func TestStageOnce_KeysThatWereUsed(t *testing.T) {
	t.Parallel()
	found := func(rows *sqlmock.Rows) func(m mocked) {
		return func(m mocked) {
			m.staging.ExpectQuery(lockKey).WillReturnRows(sqlmock.NewRows([]string{""}).AddRow(true))
			m.staging.ExpectQuery(findKey).WithArgs(workspaceID, "key").WillReturnRows(rows)
		}
	}
	confirmed := func(written, committed error) func(m mocked) {
		return func(m mocked) {
			found(keyRow(helloFingerprint[:], keptAnswer))(m)
			m.staging.ExpectExec(confirmKey).WithArgs(workspaceID, "key").WillReturnResult(driver.RowsAffected(1)).WillReturnError(written)
			if written == nil {
				m.staging.ExpectCommit().WillReturnError(committed)
			}
		}
	}
	m := newMockedWith(t, withQuota())
	m.staging.ExpectBegin()
	confirmed(nil, errDatabase)(m)
	if staged, replayed, err := m.StageOnce(t.Context(), workspaceID, "key", hello()); staged != nil || replayed || !errors.Is(err, errDatabase) {
		t.Errorf("not committed: %+v, replayed %t, %v", staged, replayed, err)
	}
	for name, c := range map[string]struct {
		expect func(m mocked)
		want   error // nil: the stored answer
		broken bool
	}{
		"the same files": {expect: confirmed(nil, nil)},
		"not confirmed":  {expect: confirmed(errDatabase, nil), want: errDatabase},
		"other files":    {expect: found(keyRow(mockDigest[:], keptAnswer)), want: pendinguploads.ErrKeyReused},
		"no fingerprint": {expect: found(keyRow([]byte("short"), keptAnswer)), broken: true},
		"no answer":      {expect: found(keyRow(helloFingerprint[:], "{")), broken: true},
		"in use": {expect: func(m mocked) {
			m.staging.ExpectQuery(lockKey).WillReturnRows(sqlmock.NewRows([]string{""}).AddRow(false))
		}, want: pendinguploads.ErrKeyInUse},
	} {
		m := newMockedWith(t, withQuota())
		m.staging.ExpectBegin()
		c.expect(m)
		if c.want != nil || c.broken {
			m.staging.ExpectRollback()
		}
		staged, replayed, err := m.StageOnce(t.Context(), workspaceID, "key", hello())
		switch {
		case c.broken:
			if err == nil || staged != nil || replayed {
				t.Errorf("%s: %+v, replayed %t, %v", name, staged, replayed, err)
			}
		case c.want != nil:
			if !errors.Is(err, c.want) || staged != nil || replayed {
				t.Errorf("%s: %+v, replayed %t, %v; want %v", name, staged, replayed, err, c.want)
			}
		case err != nil || !replayed || len(staged) != 1 || staged[0].ID != fileIDs[0] || staged[0].SHA256 != sha256.Sum256([]byte("hello")) ||
			!staged[0].ExpiresAt.Equal(expiresAt) || staged[0].Workspace != workspaceID || staged[0].Size != 5:
			t.Errorf("%s: %+v, replayed %t, %v", name, staged, replayed, err)
		}
	}
}

// A time that JSON cannot encode: an answer that could not be replayed is not stored.
func TestStageOnce_AnAnswerThatCannotBeKeptIsAnError(t *testing.T) {
	t.Parallel()
	m := newMocked(t)
	m.staging.ExpectBegin()
	m.staging.ExpectQuery(lockKey).WillReturnRows(sqlmock.NewRows([]string{""}).AddRow(true))
	m.staging.ExpectQuery(findKey).WillReturnRows(sqlmock.NewRows([]string{"fingerprint", "files"}))
	m.staging.ExpectQuery(insertFile).WillReturnRows(insertedRow(time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)))
	m.staging.ExpectRollback()
	if staged, replayed, err := m.StageOnce(t.Context(), workspaceID, "key", hello()); staged != nil || replayed || err == nil {
		t.Errorf("%d files, replayed %t, %v", len(staged), replayed, err)
	}
}

// The reservation has expired meanwhile, so another upload may have used the quota.
func TestStage_WithoutItsReservationNothingIsStaged(t *testing.T) {
	t.Parallel()
	m := newMockedWith(t, withQuota())
	m.staging.ExpectBegin()
	m.sessions.ExpectQuery(reserveUpload).WillReturnRows(reserved(reservationID.String(), 0, 0))
	m.staging.ExpectQuery(insertFile).WillReturnRows(insertedRow(expiresAt))
	m.staging.ExpectExec(insertChunk).WillReturnResult(driver.RowsAffected(1))
	m.staging.ExpectExec(useReservation).WillReturnResult(driver.RowsAffected(0))
	m.staging.ExpectRollback()
	m.sessions.ExpectExec(releaseReservation).WillReturnError(errDatabase) // then it expires by itself
	if staged, err := m.Stage(t.Context(), workspaceID, large()); staged != nil || err == nil || errors.Is(err, pendinguploads.ErrQuota) {
		t.Errorf("%d files, %v", len(staged), err)
	}
}

// A client disconnects while its reservation is being made: the reservation is released. Planted: made
// with the client's context, so that the answer with its id is lost.
func TestStage_ReservationOfAClientThatDisconnectsIsReleased(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	m := newMockedMatching(t, withQuota(), sqlmock.QueryMatcherFunc(func(want, got string) error {
		if normalize(got) == reserveUpload {
			cancel()
		}
		return sqlmock.QueryMatcherEqual.Match(want, normalize(got))
	}))
	m.staging.ExpectBegin()
	m.sessions.ExpectQuery(reserveUpload).WillDelayFor(300 * time.Millisecond).WillReturnRows(reserved(reservationID.String(), 0, 0))
	m.staging.ExpectRollback()
	m.sessions.ExpectExec(releaseReservation).WillReturnResult(driver.RowsAffected(1))
	if staged, err := m.Stage(ctx, workspaceID, large()); staged != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("%d files, %v", len(staged), err)
	}
}
