package handlers_test

import (
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

// list returns the names of the files that a query selects.
func list(t testing.TB, p *servertest.Platform, w servertest.Workspace, query string) []string {
	t.Helper()
	r := p.Do(t, servertest.Request{Path: "/workspaces/" + w.ID + "/pending-uploads" + query, Token: w.Token})
	if r.Status != http.StatusOK || !strings.HasPrefix(string(r.Body), "[") {
		t.Fatalf("list%s: %d %s", query, r.Status, r.Body)
	}
	var files []struct {
		Name string `json:"name"`
	}
	r.JSON(t, &files)
	names := []string{}
	for _, f := range files {
		names = append(names, f.Name)
	}
	return names
}

// Planted: newest first; >= instead of > for after; files of other workspaces listed; expired files listed.
func TestList_StatesOrderAndPages(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w, other := p.Create(t, "poll", ""), p.Create(t, "poll", "")
	if got := list(t, p, w, ""); len(got) != 0 {
		t.Errorf("an empty list has %v", got)
	}
	files := accepted(t, post(t, p, w, file("a", "", "1"), file("b", "", "2"), file("c", "", "3")))
	files = append(files, accepted(t, post(t, p, w, file("d", "", "4"), file("e", "", "5"), file("gone", "", "6")))...)
	foreign := accepted(t, post(t, p, other, file("foreign", "", "7")))[0]
	ack(t, p, w, files[1])
	ack(t, p, w, files[3])
	fetch(t, p, w, files[4])
	exec(t, p, "UPDATE pending_uploads SET expires_at = now() WHERE filename = 'gone'")

	for query, want := range map[string][]string{
		"":                                      {"a", "c", "e"},
		"?state=unacked":                        {"a", "c", "e"},
		"?state=acked":                          {"b", "d"},
		"?state=all":                            {"a", "b", "c", "d", "e"},
		"?limit=2":                              {"a", "c"},
		"?state=all&limit=1":                    {"a"},
		"?state=all&limit=100000000000":         {"a", "b", "c", "d", "e"},
		"?after=" + files[0].ID():               {"c", "e"},
		"?after=" + files[1].ID() + "&limit=1":  {"c"},
		"?state=all&after=" + files[2].ID():     {"d", "e"},
		"?state=acked&after=" + files[1].ID():   {"d"},
		"?state=acked&after=" + files[3].ID():   {},
		"?state=unacked&after=" + files[4].ID(): {},
	} {
		if got := list(t, p, w, query); !slices.Equal(got, want) {
			t.Errorf("list%s is %v, want %v", query, got, want)
		}
	}
	for _, gone := range []string{uuid.NewString(), files[5].ID(), foreign.ID()} {
		r := p.Do(t, servertest.Request{Path: "/workspaces/" + w.ID + "/pending-uploads?after=" + gone, Token: w.Token})
		answered(t, r, http.StatusNotFound, pendingNotFound)
	}
	if got := list(t, p, other, ""); !slices.Equal(got, []string{"foreign"}) {
		t.Errorf("the other workspace has %v", got)
	}
}

func TestList_BadParametersAreNamed(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	for query, name := range map[string]string{
		"state=staged": "state", "state=ACKED": "state", "limit=0": "limit", "limit=-1": "limit", "limit=x": "limit", "limit=1.5": "limit",
		"after=x": "after", "after={" + uuid.NewString() + "}": "after",
	} {
		r := p.Do(t, servertest.Request{Path: "/workspaces/" + w.ID + "/pending-uploads?" + query, Token: w.Token})
		var answer struct{ Error, Code, Parameter string }
		r.JSON(t, &answer)
		if r.Status != http.StatusBadRequest || !strings.HasPrefix(answer.Error, name+" must be ") || answer.Parameter != name {
			t.Errorf("%s: %d %s", query, r.Status, r.Body)
		}
	}
}

// The list and the single view must agree on a file in each of its states.
func TestShow_ReportsEveryState(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	f := stage(t, p, w, "content")
	var created time.Time
	if err := p.DB.QueryRow("SELECT created_at FROM pending_uploads WHERE file_id = $1", f.ID()).Scan(&created); err != nil {
		t.Fatal(err)
	}
	for i, state := range []string{"staged", "fetched", "acked"} {
		switch state {
		case "fetched":
			do(t, p, "fetch", servertest.Request{Path: pendingPath(w, f, "/content"), Token: w.Token})
		case "acked":
			ack(t, p, w, f)
		}
		var shown map[string]any
		p.Do(t, servertest.Request{Path: pendingPath(w, f, ""), Token: w.Token}).JSON(t, &shown)
		var listed []map[string]any
		p.Do(t, servertest.Request{Path: "/workspaces/" + w.ID + "/pending-uploads?state=all", Token: w.Token}).JSON(t, &listed)
		if len(listed) != 1 || !reflect.DeepEqual(listed[0], shown) {
			t.Errorf("%s: listed as %v, shown as %v", state, listed, shown)
		}
		want := map[string]any{
			"file_id": f.ID(), "uri": f.URI, "name": f.Name, "mimeType": f.MIMEType, "size": float64(f.Size), "sha256": f.SHA256, "state": state,
			"created_at": created.UTC().Format(time.RFC3339Nano), "expires_at": f.ExpiresAt.Format(time.RFC3339Nano),
			"fetched_at": shown["fetched_at"], "acked_at": shown["acked_at"],
		}
		if !reflect.DeepEqual(shown, want) {
			t.Errorf("%s: shown as %v, want %v", state, shown, want)
		}
		for name, set := range map[string]bool{"fetched_at": i >= 1, "acked_at": i >= 2} {
			if got := fmt.Sprint(shown[name]); (got != "<nil>") != set || set && !strings.HasSuffix(got, "Z") {
				t.Errorf("%s: %s is %v", state, name, got)
			}
		}
	}
}
