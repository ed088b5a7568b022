package activity_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

func TestRead_SelectsByEveryField(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	workspace, alice, bob := uuid.New(), uuid.New(), uuid.New()
	record(t, in, workspace,
		activity.Entry{Summary: "upload", Type: activity.TypeA2AReceive, Method: activity.MethodChatUpload, TargetID: validUUID(workspace)},
		activity.Entry{Summary: "canvas", Type: activity.TypeA2AReceive, Method: "message/send", TargetID: validUUID(workspace)},
		activity.Entry{Summary: "alice", Type: activity.TypeA2AReceive, Method: "message/send", SourceID: validUUID(alice), TargetID: validUUID(workspace)},
		activity.Entry{Summary: "to bob", Type: "a2a_send", Method: "message/send", SourceID: validUUID(workspace), TargetID: validUUID(bob)},
		activity.Entry{Summary: "sent file", Type: "a2a_send", Method: activity.MethodChatUpload, SourceID: validUUID(workspace), TargetID: validUUID(alice)},
	)
	record(t, in, uuid.New(), message("another workspace's"))
	// The upload is five hours old, the next row four, and so on, so that a slow parallel run does not
	// change the result.
	if _, err := db.ExecContext(t.Context(), "UPDATE activity_logs SET created_at = now() - (6 - seq) * interval '1 hour'"); err != nil {
		t.Fatal(err)
	}
	rows := read(t, in, workspace, activity.Query{Oldest: true})
	wantSummaries(t, rows, "upload", "canvas", "alice", "to bob", "sent file")
	far := time.FixedZone("an offset that PostgreSQL refuses", 23*60*60)

	for name, test := range map[string]struct {
		query activity.Query
		want  []string
	}{
		"nothing, newest first":  {activity.Query{}, []string{"sent file", "to bob", "alice", "canvas", "upload"}},
		"type":                   {activity.Query{Type: "a2a_send"}, []string{"sent file", "to bob"}},
		"type of nothing":        {activity.Query{Type: "a2a"}, nil},
		"type of upload rows":    {activity.Query{Type: activity.MethodChatUpload}, []string{"upload"}},
		"from the canvas":        {activity.Query{Source: activity.FromCanvas}, []string{"canvas", "upload"}},
		"from agents":            {activity.Query{Source: activity.FromAgent}, []string{"sent file", "to bob", "alice"}},
		"peer":                   {activity.Query{Peer: validUUID(alice)}, []string{"sent file", "alice"}},
		"peer unknown":           {activity.Query{Peer: validUUID(uuid.New())}, nil},
		"strictly before":        {activity.Query{Before: rows[2].CreatedAt}, []string{"canvas", "upload"}},
		"before in another zone": {activity.Query{Before: rows[2].CreatedAt.In(far)}, []string{"canvas", "upload"}},
		"just not before":        {activity.Query{Before: rows[2].CreatedAt.Add(time.Microsecond)}, []string{"alice", "canvas", "upload"}},
		"within":                 {activity.Query{Within: 150 * time.Minute}, []string{"sent file", "to bob"}},
		"within a day":           {activity.Query{Within: 24 * time.Hour, Limit: 1}, []string{"sent file"}},
		"after, oldest first":    {after(rows[2]), []string{"to bob", "sent file"}},
		"after the newest":       {after(rows[4]), nil},
		"oldest":                 {activity.Query{Oldest: true, Limit: 2}, []string{"upload", "canvas"}},
		"after, of a type, one": {activity.Query{After: validUUID(rows[0].ID), Type: activity.TypeA2AReceive, Limit: 1},
			[]string{"canvas"}},
		"after a row that the filter would not show": {activity.Query{After: validUUID(rows[1].ID), Source: activity.FromAgent, Peer: validUUID(bob)},
			[]string{"to bob"}},
		"all at once": {activity.Query{After: validUUID(rows[0].ID), Type: activity.TypeA2AReceive, Source: activity.FromAgent, Peer: validUUID(alice),
			Before: rows[3].CreatedAt, Within: 10 * time.Hour, Limit: 5}, []string{"alice"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantSummaries(t, read(t, in, workspace, test.query), test.want...)
		})
	}
}

func TestRead_LimitsRows(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	workspace := uuid.New()
	const all = activity.MaxLimit + 1
	if _, err := db.ExecContext(t.Context(), `INSERT INTO activity_logs (workspace_id, seq, activity_type)
		SELECT $1, n, 'a2a_receive' FROM generate_series(1, $2) n`, workspace, all); err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int]int{
		0: activity.DefaultLimit, -1: activity.DefaultLimit, 1: 1, 7: 7, activity.MaxLimit: activity.MaxLimit, 100_000: activity.MaxLimit,
	} {
		if got := read(t, in, workspace, activity.Query{Limit: limit}); len(got) != want || got[0].Seq != all {
			t.Errorf("limit %d: %d rows from seq %d, want %d from %d", limit, len(got), got[0].Seq, want, all)
		}
		if got := read(t, in, workspace, activity.Query{Limit: limit, Oldest: true}); len(got) != want || got[0].Seq != 1 {
			t.Errorf("limit %d, oldest: %d rows from seq %d, want %d from 1", limit, len(got), got[0].Seq, want)
		}
	}
}

func TestRead_CursorGone(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	workspace, other := uuid.New(), uuid.New()
	record(t, in, workspace, message("old"), message("new"))
	record(t, in, other, message("secret"))
	rows := read(t, in, workspace, activity.Query{Oldest: true})
	if _, err := db.ExecContext(t.Context(), "DELETE FROM activity_logs WHERE id = $1", rows[0].ID); err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]uuid.UUID{
		"unknown": uuid.New(), "zero": uuid.Nil, "pruned": rows[0].ID, "another workspace's": onlyRow(t, in, other).ID,
	} {
		page, err := in.Read(t.Context(), workspace, activity.Query{After: validUUID(id)})
		if !errors.Is(err, activity.ErrCursorGone) || page != nil {
			t.Errorf("%s: %v, %v, want ErrCursorGone", name, page, err)
		}
	}
}

// Pruned rows between the cursor and the next row do not stop a reader.
func TestRead_ContinuesPastPrunedRows(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	workspace := uuid.New()
	record(t, in, workspace, message("one"), message("two"), message("three"))
	first := read(t, in, workspace, activity.Query{Oldest: true, Limit: 1})[0]
	if _, err := db.ExecContext(t.Context(), "DELETE FROM activity_logs WHERE seq = 2"); err != nil {
		t.Fatal(err)
	}
	wantSummaries(t, read(t, in, workspace, after(first)), "three")
}

func TestRead_BoundsTheBytesOfAPage(t *testing.T) {
	t.Parallel()
	in, _ := newInbox(t)
	workspace := uuid.New()
	mib := json.RawMessage(`"` + strings.Repeat("m", 1<<20-2) + `"`)
	var want []string
	for i, bodies := range []int{1, 1, 1, 1, 2, 2, 2, 0, 0, 1} {
		e := message(fmt.Sprintf("%d: %d MiB", i, bodies))
		if bodies > 0 {
			e.RequestBody = mib
		}
		if bodies > 1 {
			e.ResponseBody = mib
		}
		record(t, in, workspace, e)
		want = append(want, e.Summary)
	}
	// The last row of a page is the one that exceeds PageBytes.
	var got []string
	var pages []int
	q := activity.Query{Oldest: true}
	for len(got) <= len(want) {
		page := read(t, in, workspace, q)
		if len(page) == 0 {
			break
		}
		got, pages = append(got, summaries(page)...), append(pages, len(page))
		q = after(page[len(page)-1])
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if sizes := []int{3, 2, 2, 3}; !slices.Equal(pages, sizes) {
		t.Errorf("pages of %d rows, want %d", pages, sizes)
	}
	wantSummaries(t, read(t, in, workspace, activity.Query{}), want[9], want[8], want[7], want[6])
}

func TestRead_RowLargerThanAPageIsAPage(t *testing.T) {
	t.Parallel()
	in, _ := newInbox(t)
	workspace := uuid.New()
	huge := message("huge")
	huge.RequestBody = json.RawMessage(`"` + strings.Repeat("h", activity.PageBytes) + `"`)
	record(t, in, workspace, huge, message("small"))
	page := read(t, in, workspace, activity.Query{Oldest: true})
	wantSummaries(t, page, "huge")
	wantSummaries(t, read(t, in, workspace, after(page[0])), "small")
}

func TestRead_ReturnsTimesInUTC(t *testing.T) {
	t.Parallel()
	in := activity.New(pgtest.Open(t, pgtest.New(t)+" timezone=Asia/Kolkata"))
	workspace := uuid.New()
	record(t, in, workspace, message("now"))
	if r := onlyRow(t, in, workspace); r.CreatedAt.Location() != time.UTC || time.Since(r.CreatedAt).Abs() > time.Minute {
		t.Errorf("created at %s", r.CreatedAt)
	}
}

// A database failure must not look like a gone cursor: the reader would drop its cursor.
func TestRead_FailureIsNotAGoneCursor(t *testing.T) {
	t.Parallel()
	in, db := newInbox(t)
	workspace := uuid.New()
	db.Close()
	for _, q := range []activity.Query{{}, {After: validUUID(uuid.New())}} {
		page, err := in.Read(t.Context(), workspace, q)
		if err == nil || errors.Is(err, activity.ErrCursorGone) || page != nil {
			t.Errorf("after %v: %v, %v", q.After.Valid, page, err)
		}
	}
}
