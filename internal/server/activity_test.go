package server_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// row is a row of the inbox as a client sees it.
type row struct {
	ID       string          `json:"id"`
	Seq      int64           `json:"seq"`
	Type     string          `json:"activity_type"`
	Source   *string         `json:"source_id"`
	Target   *string         `json:"target_id"`
	Method   *string         `json:"method"`
	Summary  *string         `json:"summary"`
	Request  json.RawMessage `json:"request_body"`
	Response json.RawMessage `json:"response_body"`
	Status   *string         `json:"status"`
	Created  string          `json:"created_at"`
}

func read(t testing.TB, p *servertest.Platform, w servertest.Workspace, query string) []row {
	t.Helper()
	var rows []row
	must(t, p, http.StatusOK, "GET", "/workspaces/"+w.ID+"/activity"+query, w.Token, "", &rows)
	return rows
}

// first is the first row of read.
func first(t testing.TB, p *servertest.Platform, w servertest.Workspace, query string) row {
	t.Helper()
	rows := read(t, p, w, query)
	if len(rows) == 0 || rows[0].Method == nil && rows[0].Summary == nil {
		t.Fatalf("%s: no such row: %v", query, rows)
	}
	return rows[0]
}

// summaries says which rows there are, in their order.
func summaries(rows []row) string {
	var all []string
	for _, r := range rows {
		if r.Summary == nil {
			all = append(all, "null")
			continue
		}
		all = append(all, *r.Summary)
	}
	return strings.Join(all, " ")
}

// record writes a row behind the platform's back.
func record(t testing.TB, p *servertest.Platform, w servertest.Workspace, entries ...activity.Entry) {
	t.Helper()
	tx, err := p.DB.BeginTx(t.Context(), nil)
	if err == nil {
		err = activity.New(p.DB).Append(t.Context(), tx, uuid.MustParse(w.ID), entries...)
	}
	if err == nil {
		err = tx.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func id(s string) uuid.NullUUID { return uuid.NullUUID{UUID: uuid.MustParse(s), Valid: true} }

func TestActivity_EachParameterSelects(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	const alice, bob = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
	record(t, p, w,
		activity.Entry{Type: "a2a_receive", Summary: "canvas", Method: "message/send"},
		activity.Entry{Type: "a2a_receive", Summary: "upload", Method: activity.MethodChatUpload},
		activity.Entry{Type: "a2a_receive", Summary: "alice", SourceID: id(alice)},
		activity.Entry{Type: "a2a_send", Summary: "bob", SourceID: id(w.ID), TargetID: id(bob)},
		activity.Entry{Type: "task", Summary: "task", Method: activity.MethodChatUpload})
	exec(t, p, `UPDATE activity_logs SET created_at = now() - interval '1 hour' * (6 - seq)`)
	all := read(t, p, w, "")
	if summaries(all) != "task bob alice upload canvas" {
		t.Fatalf("all: %s", summaries(all))
	}
	at := func(summary string) row {
		return all[slices.IndexFunc(all, func(r row) bool { return *r.Summary == summary })]
	}
	for query, want := range map[string]string{
		"order=desc":                      "task bob alice upload canvas",
		"order=asc":                       "canvas upload alice bob task",
		"type=a2a_receive":                "alice upload canvas",
		"type=a2a_send":                   "bob",
		"type=chat_upload_receive":        "upload",
		"type=nothing":                    "",
		"source=canvas":                   "task upload canvas",
		"source=agent":                    "bob alice",
		"peer_id=" + alice:                "alice",
		"peer_id=" + strings.ToUpper(bob): "bob",
		"peer_id=" + nobody:               "",
		"before_ts=" + url.QueryEscape(at("bob").Created): "alice upload canvas",
		"before_ts=1999-12-31T23:59:59-11:00":             "",
		"since_secs=9000":                                 "task bob",
		"since_secs=2592000":                              "task bob alice upload canvas",
		"limit=2":                                         "task bob",
		"limit=2&order=asc":                               "canvas upload",
		"limit=4294967296":                                "task bob alice upload canvas",
		"limit=0":                                         "task bob alice upload canvas",
		"limit=-1":                                        "task bob alice upload canvas",
		"since_secs=2592001":                              "task bob alice upload canvas",
		"since_id=" + at("alice").ID:                      "bob task",
		"since_id=" + at("alice").ID + "&limit=1":         "bob",
		"since_id=" + at("alice").ID + "&order=asc":       "bob task",
		"since_id=" + at("task").ID:                       "",
		"since_id=" + at("canvas").ID + "&type=a2a_receive&source=agent": "alice",
		"unknown=parameter": "task bob alice upload canvas",
	} {
		if got := summaries(read(t, p, w, "?"+query)); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	if r := call(t, p, "GET", "/workspaces/"+w.ID+"/activity?type=nothing", w.Token, ""); string(r.Body) != "[]" && string(r.Body) != "[]\n" {
		t.Errorf("no rows: %q, want []", r.Body)
	}
}

func TestActivity_PagesEndAt500Rows(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	record(t, p, w, slices.Repeat([]activity.Entry{{Type: "x", Summary: "x"}}, 501)...)
	for query, want := range map[string]int{"": 100, "?limit=1": 1, "?limit=500": 500, "?limit=501": 500, "?limit=100000": 500,
		"?limit=0": 100, "?limit=-1": 100} {
		if got := len(read(t, p, w, query)); got != want {
			t.Errorf("%q: %d rows, want %d", query, got, want)
		}
	}
	page := read(t, p, w, "?order=asc&limit=500")
	if last := read(t, p, w, "?since_id="+page[len(page)-1].ID); len(last) != 1 || last[0].Seq != 501 {
		t.Errorf("after the page: %v", last)
	}
}

func TestActivity_BadValueIsNamed(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	record(t, p, w, activity.Entry{Type: "x", Summary: "x"})
	newest := first(t, p, w, "").ID
	for parameter, values := range map[string][]string{
		"type":       {"a b", "<x>", "é", "a\x00", strings.Repeat("x", 101), "a,b"},
		"source":     {"Canvas", "canvas,agent", "user", " canvas"},
		"peer_id":    {"x", strings.ReplaceAll(nobody, "-", ""), "{" + nobody + "}", "null"},
		"since_id":   {"0", nobody + "0", "urn:uuid:" + nobody},
		"before_ts":  {"yesterday", "2026-01-31", "2026-01-31 12:00:00Z", "2026-13-01T00:00:00Z", "1700000000", "2026-01-31T12:00:00"},
		"since_secs": {"0", "-1", "1.5", "1e3", "0x10", "+5", "ten", " 1"},
		"order":      {"ASC", "up", "desc&since_id=" + newest},
	} {
		for _, value := range values {
			value, further, _ := strings.Cut(value, "&")
			r := call(t, p, "GET", "/workspaces/"+w.ID+"/activity?"+parameter+"="+url.QueryEscape(value)+"&"+further, w.Token, "")
			isError(t, r, http.StatusBadRequest, "invalid_parameter", parameter+" must be ")
			var named struct{ Parameter string }
			if r.JSON(t, &named); named.Parameter != parameter {
				t.Errorf("%s=%q: parameter %q", parameter, value, named.Parameter)
			}
		}
	}
}

// A cursor that leads nowhere is a 410 that says how to go on, whether the row was pruned,
// never was, or is somebody else's.
func TestActivity_CursorGone(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	own, other := p.Create(t, "poll", ""), p.Create(t, "poll", "")
	record(t, p, own, activity.Entry{Type: "x", Summary: "pruned"}, activity.Entry{Type: "x", Summary: "kept"})
	record(t, p, other, activity.Entry{Type: "x", Summary: "other's"})
	pruned := first(t, p, own, "?order=asc").ID
	exec(t, p, `DELETE FROM activity_logs WHERE id = $1`, pruned)
	gone := call(t, p, "GET", "/workspaces/"+own.ID+"/activity?since_id="+nobody, own.Token, "")
	isError(t, gone, http.StatusGone, "cursor_gone", "omit since_id")
	for _, cursor := range []string{pruned, first(t, p, other, "").ID} {
		same(t, call(t, p, "GET", "/workspaces/"+own.ID+"/activity?since_id="+cursor, own.Token, ""), gone)
	}
	if got := summaries(read(t, p, own, "")); got != "kept" {
		t.Errorf("without since_id: %s", got)
	}
}

func TestActivity_UploadRowsToTheLetter(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	files := stage(t, p, w, "first file.txt", "second.pdf", "third")
	var rows []map[string]any
	must(t, p, http.StatusOK, "GET", "/workspaces/"+w.ID+"/activity?order=asc&type=chat_upload_receive", w.Token, "", &rows)
	if len(rows) != len(files) {
		t.Fatalf("%d rows for %d files", len(rows), len(files))
	}
	for i, f := range files {
		id, created := rows[i]["id"].(string), rows[i]["created_at"].(string)
		if _, err := time.Parse(time.RFC3339Nano, created); err != nil || uuid.Validate(id) != nil {
			t.Errorf("row %d: id %s, created_at %s", i, id, created)
		}
		want := fmt.Sprintf(`{"id":%q,"seq":%d,"workspace_id":%q,"activity_type":"a2a_receive","source_id":null,"target_id":%q,
			"method":"chat_upload_receive","summary":"chat_upload_receive: %s",
			"request_body":{"file_id":%q,"name":%q,"mimeType":%q,"size":%d,"uri":"platform-pending:%s/%s","sha256":%q},
			"response_body":null,"duration_ms":null,"status":"ok","error_detail":null,"created_at":%q}`,
			id, i+1, w.ID, w.ID, f.Name, f.ID(), f.Name, f.Type, f.Size, w.ID, f.ID(), f.SHA256, created)
		got, err := json.Marshal(rows[i])
		if err != nil {
			t.Fatal(err)
		}
		isJSON(t, &servertest.Response{Status: http.StatusOK, Body: got}, http.StatusOK, want)
	}
	if *first(t, p, w, "?order=asc").Summary != "chat_upload_receive: first_file.txt" {
		t.Error("the rows are not in the order of the parts, or their names not sanitized")
	}
}
