package activity_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
)

func TestAppend_KeepsTheOrderOfItsEntries(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	workspace := uuid.New()
	record(t, in, workspace, message("before"))
	want := []string{"before"}
	var entries []activity.Entry
	for i := range 64 {
		want = append(want, fmt.Sprint("file ", i))
		entries = append(entries, message(want[i+1]))
	}
	appendIn(t, in, db, workspace, (*sql.Tx).Commit, entries...)
	rows := read(t, in, workspace, activity.Query{Oldest: true})
	wantSummaries(t, rows, want...)
	for i, r := range rows {
		if r.Seq != int64(i)+1 {
			t.Errorf("row %d has seq %d", i, r.Seq)
		}
	}
}

func TestAppend_RolledBackLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	workspace := uuid.New()
	appendIn(t, in, db, workspace, (*sql.Tx).Rollback, message("first of all, undone"))
	record(t, in, workspace, message("one"))
	appendIn(t, in, db, workspace, (*sql.Tx).Rollback, message("undone"), message("undone too"))
	record(t, in, workspace, message("two"))

	one := read(t, in, workspace, activity.Query{Oldest: true, Limit: 1})
	wantSummaries(t, one, "one")
	two := read(t, in, workspace, after(one[0]))
	wantSummaries(t, two, "two")
	if one[0].Seq != 1 || two[0].Seq != 2 {
		t.Errorf("seq %d and %d, want 1 and 2", one[0].Seq, two[0].Seq)
	}
}

func TestAppend_NoEntriesConsumeNoSeq(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	workspace := uuid.New()
	appendIn(t, in, db, workspace, (*sql.Tx).Commit)
	var counters int
	if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM activity_counters").Scan(&counters); err != nil {
		t.Fatal(err)
	}
	if counters != 0 {
		t.Error("appending nothing made a counter")
	}
}

func TestAppend_NumbersEachWorkspaceSeparately(t *testing.T) {
	t.Parallel()
	in, _ := newInbox(t)
	a, b := uuid.New(), uuid.New()
	record(t, in, a, message("a1"), message("a2"))
	record(t, in, b, message("b1"))
	wantSummaries(t, read(t, in, a, activity.Query{Oldest: true}), "a1", "a2")
	if r := onlyRow(t, in, b); *r.Summary != "b1" || r.Seq != 1 || r.WorkspaceID != b {
		t.Errorf("got %s", render(t, r))
	}
}

// The transaction that starts first commits last. Its row must be the later one by seq and by
// created_at.
func TestAppend_CreatedAtDoesNotRunAgainstSeq(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	workspace := uuid.New()
	appendIn(t, in, db, workspace, (*sql.Tx).Commit, message("warm-up"))
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() // after a commit it does nothing
	if _, err := tx.ExecContext(t.Context(), "SELECT now()"); err != nil {
		t.Fatal(err)
	}
	record(t, in, workspace, message("quick"))
	if err := in.Append(t.Context(), tx, workspace, message("slow")); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	rows := read(t, in, workspace, activity.Query{Oldest: true})
	wantSummaries(t, rows, "warm-up", "quick", "slow")
	if !slices.IsSortedFunc(rows, func(a, b activity.Row) int { return a.CreatedAt.Compare(b.CreatedAt) }) {
		t.Errorf("created_at runs against seq: %s", render(t, rows))
	}
}

func TestRecord_KeepsBodiesAsSent(t *testing.T) {
	t.Parallel()
	in, _ := newInbox(t)
	mib := `"` + strings.Repeat("m", 1<<20-2) + `"`
	// Go's parser, and so the platform, accepts at most 10,000 levels.
	deepArray := strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000)
	deepObject := strings.Repeat(`{"a":`, 10_000) + "null" + strings.Repeat("}", 10_000)
	for name, test := range map[string]struct{ sent, kept string }{
		"spacing, order and duplicate keys": {sent: "{ \"b\" : 1,\t\"a\":2, \"b\":\n3 }"},
		"null":                              {sent: `null`},
		"looks like a null of SQL":          {sent: `"NULL"`},
		"quotes, backslashes and braces":    {sent: `{"a":"\"\\{},'"}`},
		"escaped NUL":                       {sent: `{"a":"x\u0000y"}`},
		"lone surrogates":                   {sent: `"\ud800 and \udc00"`},
		"number beyond every type":          {sent: `[1e999999,-0,123456789012345678901234567890.5]`},
		"characters of all lengths":         {sent: `"é☃😀"`},
		"one MiB":                           {sent: mib},
		"arrays as deep as Go takes":        {sent: deepArray},
		"objects as deep as Go takes":       {sent: deepObject},
		"invalid UTF-8, which Go takes":     {sent: "\"a\xffb\xed\xa0\x80c\"", kept: "\"a\uFFFDb\uFFFDc\""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !json.Valid([]byte(test.sent)) {
				t.Fatal("the case is not JSON that the platform accepts")
			}
			if test.kept == "" {
				test.kept = test.sent
			}
			workspace := uuid.New()
			e := message("")
			e.RequestBody, e.ResponseBody = json.RawMessage(test.sent), json.RawMessage(test.sent)
			record(t, in, workspace, e)
			r := onlyRow(t, in, workspace)
			if string(r.RequestBody) != test.kept || string(r.ResponseBody) != test.kept {
				t.Errorf("kept %.80q and %.80q, want %.80q", r.RequestBody, r.ResponseBody, test.kept)
			}
			render(t, r) // stored bodies must be marshallable
		})
	}
}

func TestRecord_MakesTextStorable(t *testing.T) {
	t.Parallel()
	in, _ := newInbox(t)
	workspace := uuid.New()
	e := message("s\xffs")
	e.Method, e.Status, e.ErrorDetail = "m\x00m", "\xc3", "\x00"
	record(t, in, workspace, e)
	r := onlyRow(t, in, workspace)
	if *r.Method != "mm" || *r.Summary != "s\uFFFDs" || *r.Status != "\uFFFD" {
		t.Errorf("got %s", render(t, r))
	}
}

func TestRecord_StoresEveryField(t *testing.T) {
	t.Parallel()
	in, _ := newInbox(t)
	workspace, source, target := uuid.New(), uuid.New(), uuid.New()
	took := 1_500*time.Millisecond + 900*time.Microsecond
	record(t, in, workspace, activity.Entry{
		Type: "a2a_send", SourceID: validUUID(source), TargetID: validUUID(target), Method: "message/send", Summary: "hello",
		RequestBody: json.RawMessage(`{"q":1}`), ResponseBody: json.RawMessage(`{"a":2}`), Duration: &took,
		Status: activity.StatusError, ErrorDetail: "workspace answered 500",
	})
	r := onlyRow(t, in, workspace)
	want := fmt.Sprintf(`{"id":%q,"seq":1,"workspace_id":%q,"activity_type":"a2a_send","source_id":%q,"target_id":%q,`+
		`"method":"message/send","summary":"hello","request_body":{"q":1},"response_body":{"a":2},"duration_ms":1500,`+
		`"status":"error","error_detail":"workspace answered 500","created_at":%s}`, r.ID, workspace, source, target, render(t, r.CreatedAt))
	if got := render(t, r); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestRecord_RendersNullWhereThereIsNothing(t *testing.T) {
	t.Parallel()
	in, _ := newInbox(t)
	workspace := uuid.New()
	record(t, in, workspace, activity.Entry{Type: "task_update"})
	r := onlyRow(t, in, workspace)
	want := fmt.Sprintf(`{"id":%q,"seq":1,"workspace_id":%q,"activity_type":"task_update","source_id":null,"target_id":null,`+
		`"method":null,"summary":null,"request_body":null,"response_body":null,"duration_ms":null,`+
		`"status":null,"error_detail":null,"created_at":%s}`, r.ID, workspace, render(t, r.CreatedAt))
	if got := render(t, r); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestRecord_FailureLeavesNoRow(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	db.SetMaxOpenConns(1) // a transaction left open would block what follows
	workspace := uuid.New()
	broken := message("broken")
	broken.RequestBody = json.RawMessage(`{`)
	if err := in.Record(t.Context(), workspace, broken); err == nil {
		t.Error("recorded what is not JSON")
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := in.Record(cancelled, workspace, message("cancelled")); err == nil {
		t.Error("recorded for a cancelled context")
	}
	wantSummaries(t, read(t, in, workspace, activity.Query{}))
}

func validUUID(id uuid.UUID) uuid.NullUUID { return uuid.NullUUID{UUID: id, Valid: true} }
