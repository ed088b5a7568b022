package events_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/events"
)

// describe formats events in their order.
func describe(list []events.Event) string {
	var all []string
	for _, e := range list {
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s%s", e.Kind, e.Name, e.Method)))
	}
	return strings.ReplaceAll(strings.Join(all, ", "), "chat_upload_receive", "")
}

// Planted: rows returned before receipts whatever their time; files swept after their ack returned as
// expired; a late fetch with the state fetched.
func TestAfter_ReturnsTheHistoryOfFiles(t *testing.T) {
	t.Parallel()
	d := newFixture(t)
	workspace, other := uuid.New(), uuid.New()
	a, b := d.stage(t, workspace, "a"), d.stage(t, workspace, "b")
	d.stage(t, other, "x")
	d.exec(t, sqlFetch, a)
	d.message(t, workspace, "message/send")
	d.exec(t, sqlAck, a)
	d.exec(t, sqlAck, a)    // a second ack makes no event
	d.exec(t, sqlDelete, a) // swept
	d.exec(t, `UPDATE pending_uploads SET expires_at = now() - interval '1 minute' WHERE file_id = $1`, b)
	d.exec(t, sqlDelete, b)
	c := d.stage(t, workspace, "c")
	d.exec(t, sqlAck, c)
	d.exec(t, sqlFetch, c) // recorded late
	d.exec(t, sqlDelete, c)
	seen := d.all(t, workspace, events.Position{}, 100)
	const want = "staged a, staged b, fetched a, message message/send, acked a, expired b, staged c, acked c, fetched c"
	if got := describe(seen); got != want {
		t.Fatalf("%s\nwant %s", got, want)
	}
	for i, e := range seen {
		row, file := e.Kind == events.Staged || e.Kind == events.Message, e.Kind != events.Message
		if (e.RowID != uuid.Nil) != row || (e.FileID != uuid.Nil) != file || file && e.Size != 3 || time.Since(e.At) > time.Hour || e.At.Location() != time.UTC {
			t.Errorf("event %d: %+v", i, e)
		}
		if late := i == 8; file && (e.State == e.Kind) == late || late && e.State != events.Acked {
			t.Errorf("event %d: %s is %s", i, e.Kind, e.State)
		}
	}
	for _, limit := range []int{1, 2, 3, 7} {
		if got := describe(d.all(t, workspace, events.Position{}, limit)); got != want {
			t.Errorf("pages of %d: %s", limit, got)
		}
	}
	for i, e := range seen {
		p, err := events.ParsePosition(e.String())
		if err != nil || p != e.Position {
			t.Fatalf("position %s: %v, %v", e.Position, p, err)
		}
		if got, rest := describe(d.all(t, workspace, p, 2)), describe(seen[i+1:]); got != rest {
			t.Errorf("after %s: %s, want %s", p, got, rest)
		}
	}
}

// The staging of a file comes first, whatever the clock says. Planted: sorted by time only.
func TestAfter_FileStartsWithItsStaging(t *testing.T) {
	t.Parallel()
	d := newFixture(t)
	workspace := uuid.New()
	d.message(t, workspace, "first")
	a := d.stage(t, workspace, "a")
	d.message(t, workspace, "last")
	d.exec(t, sqlFetch, a)
	d.exec(t, sqlAck, a)
	d.exec(t, `UPDATE receipts SET at = at - interval '1 hour'`)
	if got := describe(d.all(t, workspace, events.Position{}, 9)); got != "message first, staged a, fetched a, acked a, message last" {
		t.Errorf("after the clock was set: %s", got)
	}
}

// A rolled-back change is no event.
func TestAfter_OmitsRolledBackChanges(t *testing.T) {
	t.Parallel()
	d := newFixture(t)
	workspace := uuid.New()
	a := d.stage(t, workspace, "a")
	tx, err := d.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), sqlAck, a); err != nil {
		t.Fatal(err)
	}
	if got := describe(d.all(t, workspace, events.Position{}, 9)); got != "staged a" {
		t.Errorf("before the end: %s", got)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	d.exec(t, sqlFetch, a)
	if got := describe(d.all(t, workspace, events.Position{}, 9)); got != "staged a, fetched a" {
		t.Errorf("after it: %s", got)
	}
}

// Planted: Now without numbering the receipts, which then come as new.
func TestNow_IsAfterAllEvents(t *testing.T) {
	t.Parallel()
	d := newFixture(t)
	workspace := uuid.New()
	if p, err := d.log.Now(t.Context(), workspace); err != nil || p != (events.Position{}) {
		t.Errorf("without events: %s, %v", p, err)
	}
	a := d.stage(t, workspace, "a")
	d.exec(t, sqlFetch, a)
	p, err := d.log.Now(t.Context(), workspace)
	if err != nil {
		t.Fatal(err)
	}
	if got := d.all(t, workspace, p, 9); len(got) != 0 {
		t.Errorf("old events after Now: %s", describe(got))
	}
	d.exec(t, sqlAck, a)
	if got := describe(d.all(t, workspace, p, 9)); got != "acked a" {
		t.Errorf("from now on: %s", got)
	}
}

// Check returns ErrGone exactly for the positions that would miss events. Planted: unnumbered receipts
// pruned without counting them; no check of the next number.
func TestCheck_ReportsPrunedEvents(t *testing.T) {
	t.Parallel()
	d := newFixture(t)
	workspace := uuid.New()
	check := func(what string, p events.Position, gone bool) {
		t.Helper()
		err := d.log.Check(t.Context(), workspace, p)
		if gone != errors.Is(err, events.ErrGone) || !gone && err != nil {
			t.Errorf("%s: %s: %v", what, p, err)
		}
	}
	check("nothing yet", events.Position{}, false)
	check("nothing yet", events.Position{Row: 1}, true)
	check("nothing yet", events.Position{Receipt: 1}, true)
	var files []uuid.UUID
	for _, name := range []string{"a", "b", "c", "d"} {
		files = append(files, d.stage(t, workspace, name))
	}
	for _, f := range files[:2] {
		d.exec(t, sqlAck, f)
	}
	for i := range 3 { // Check numbers the receipts too
		check("two acks", events.Position{Row: 4, Receipt: int64(i)}, i > 2)
		check("four rows", events.Position{Row: int64(i)}, false)
	}
	d.exec(t, sqlAck, files[2])
	d.exec(t, `UPDATE receipts SET at = at - interval '2 days'`)
	if more, err := d.log.Prune(t.Context(), events.Retention); err != nil || more {
		t.Fatal(more, err)
	}
	check("pruned", events.Position{Row: 4, Receipt: 1}, true)
	check("pruned without a number", events.Position{Row: 4, Receipt: 2}, true)
	check("all seen", events.Position{Row: 4, Receipt: 3}, false)
	d.exec(t, sqlAck, files[3])
	check("one seen, three gone", events.Position{Row: 4, Receipt: 1}, true)
	if got := describe(d.all(t, workspace, events.Position{Row: 4, Receipt: 3}, 9)); got != "acked d" {
		t.Errorf("after those that are gone: %s", got)
	}
	if _, _, err := d.log.After(t.Context(), workspace, events.Position{Row: 4, Receipt: 2}, 9); !errors.Is(err, events.ErrGone) {
		t.Errorf("read over a gap: %v", err)
	}
	d.exec(t, `DELETE FROM activity_logs WHERE seq <= 2`)
	check("rows pruned", events.Position{Row: 1, Receipt: 4}, true)
	check("rows seen", events.Position{Row: 2, Receipt: 4}, false)
	if _, _, err := d.log.After(t.Context(), workspace, events.Position{Row: 1, Receipt: 4}, 9); !errors.Is(err, events.ErrGone) {
		t.Errorf("read over pruned rows: %v", err)
	}
}

func TestPrune_DeletesOldReceiptsInBatches(t *testing.T) {
	t.Parallel()
	d := newFixture(t)
	d.exec(t, `INSERT INTO receipts (workspace_id, kind, state, file_id, filename, size_bytes, at)
		SELECT gen_random_uuid(), 'acked', 'acked', gen_random_uuid(), 'a', 1, now() - i * interval '1 hour' FROM generate_series(1, 5000) i`)
	for batch := 1; ; batch++ {
		more, err := d.log.Prune(t.Context(), 24*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if !more && batch == 3 {
			break
		}
		if !more || batch > 3 {
			t.Fatalf("batch %d: more is %v", batch, more)
		}
	}
	var left int
	if err := d.db.QueryRowContext(t.Context(), `SELECT count(*) FROM receipts`).Scan(&left); err != nil || left != 24 && left != 23 {
		t.Errorf("%d left, %v", left, err)
	}
}

func TestParsePosition_AcceptsOneFormOnly(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"", "-", "1", "1-", "-1", "1-2-3", "01-2", "1-02", "+1-2", " 1-2", "1-2 ", "1--2", "a-b", "1_0-2", "0x1-2", "٣-1",
		"9223372036854775808-1", "1-99999999999999999999",
	} {
		if p, err := events.ParsePosition(bad); !errors.Is(err, events.ErrInvalidPosition) {
			t.Errorf("%q: %v, %v", bad, p, err)
		}
	}
	for _, good := range []string{"0-0", "12-5", "9223372036854775807-9223372036854775807"} {
		if p, err := events.ParsePosition(good); err != nil || p.String() != good {
			t.Errorf("%q: %v, %v", good, p, err)
		}
	}
}
