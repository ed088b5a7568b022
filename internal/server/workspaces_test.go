package server_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/server/servertest"
	"github.com/molecule-ai/platform/internal/wsauth"
)

func TestWorkspaces_Create(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	for _, c := range []struct{ body, mode, code, text string }{
		{`{"name":"laptop","delivery_mode":"poll"}`, "poll", "", ""},
		{`{"name":"laptop","delivery_mode":"poll","url":"ignored"}`, "poll", "", ""},
		{`{"name":"laptop"}`, "push", "", ""},
		{`{"name":"laptop","delivery_mode":"push","url":"https://agent.example.com"}`, "push", "", ""},
		{`{"name":"` + strings.Repeat("x", 200) + `"}`, "push", "", ""},
		{`{"name":"` + strings.Repeat("x", 201) + `"}`, "", "invalid_name", "name"},
		{`{"name":"` + strings.Repeat("é", 101) + `"}`, "", "invalid_name", "name"},
		{`{"name":""}`, "", "invalid_name", "name"},
		{`{}`, "", "invalid_name", "name"},
		{`{"name":"a\u0000"}`, "", "invalid_name", "name"},
		{`{"name":7}`, "", "invalid_request", "name"},
		{`{"name":"x","delivery_mode":"pull"}`, "", "invalid_delivery_mode", "delivery_mode"},
		{`{"name":"x","url":"agent.example.com"}`, "", "invalid_url", "url"},
		{`{"name":"x","url":"http://192.168.0.1"}`, "", "url_not_allowed", "private"},
	} {
		r := call(t, p, "POST", "/workspaces", admin, c.body)
		if c.mode == "" {
			isError(t, r, http.StatusBadRequest, c.code, c.text)
			continue
		}
		var made struct {
			ID     string
			Mode   string `json:"delivery_mode"`
			Token  string `json:"auth_token"`
			Secret string `json:"platform_inbound_secret"`
		}
		r.JSON(t, &made)
		if r.Status != http.StatusCreated || made.Mode != c.mode || made.Token == "" || made.Secret == "" {
			t.Errorf("%s: %d %s", c.body, r.Status, r.Body)
		}
		must(t, p, http.StatusOK, "GET", "/workspaces/"+made.ID, made.Token, "", nil)
	}
}

// Planted: no Link; a Link on the last page; a bad value taken for the default.
func TestWorkspaces_ListInPages(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	first, second, third := p.Create(t, "poll", ""), p.Create(t, "poll", ""), p.Create(t, "poll", "")
	stage(t, p, third, "a.txt")
	var got []string
	pages := 0
	for path := "/workspaces?limit=2"; path != ""; pages++ {
		r := call(t, p, "GET", path, admin, "")
		var page []struct {
			ID     string
			Files  int     `json:"unacked_files"`
			Oldest *string `json:"oldest_unacked_at"`
		}
		r.JSON(t, &page)
		for _, w := range page {
			got = append(got, w.ID)
			if staged := w.ID == third.ID; (w.Files == 1) != staged || (w.Oldest != nil) != staged {
				t.Errorf("%+v, want a file only for the third", w)
			}
		}
		path, _, _ = strings.Cut(strings.TrimPrefix(r.Header.Get("Link"), "<"), `>; rel="next"`)
	}
	if want := []string{third.ID, second.ID, first.ID}; !slices.Equal(got, want) || pages != 2 {
		t.Errorf("%v in %d pages, want %v in 2", got, pages, want)
	}
	for _, query := range []string{"limit=0", "limit=x", "after=x"} {
		isError(t, call(t, p, "GET", "/workspaces?"+query, admin, ""), http.StatusBadRequest, "invalid_parameter", query[:5])
	}
	isError(t, call(t, p, "GET", "/workspaces?after="+nobody, admin, ""), http.StatusNotFound, "workspace_not_found", "not found")
}

func TestWorkspaces_ListIsNewestFirstWithoutTombstones(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	list := func() []string {
		var all []shown
		must(t, p, http.StatusOK, "GET", "/workspaces", admin, "", &all)
		ids := make([]string, len(all))
		for i, w := range all {
			ids[i] = w.ID
		}
		return ids
	}
	if r := call(t, p, "GET", "/workspaces", admin, ""); strings.TrimSpace(string(r.Body)) != "[]" {
		t.Errorf("none: %s, want []", r.Body)
	}
	first, second, third := p.Create(t, "poll", ""), p.Create(t, "push", ""), p.Create(t, "poll", "")
	if got, want := list(), []string{third.ID, second.ID, first.ID}; !slices.Equal(got, want) {
		t.Errorf("list %v, want %v", got, want)
	}
	remove(t, p, second)
	if got, want := list(), []string{third.ID, first.ID}; !slices.Equal(got, want) {
		t.Errorf("list %v, want %v", got, want)
	}
}

func TestWorkspaces_Show(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	for _, token := range []string{w.Token, admin} {
		var got shown
		must(t, p, http.StatusOK, "GET", "/workspaces/"+w.ID, token, "", &got)
		if want := (shown{ID: w.ID, Name: t.Name(), Status: "provisioning", Mode: "poll"}); got != want {
			t.Errorf("shown %+v, want %+v", got, want)
		}
	}
	isJSON(t, call(t, p, "GET", "/workspaces/"+nobody, admin, ""), http.StatusNotFound,
		`{"error":"workspace not found","code":"workspace_not_found"}`)
}

// Removing leaves a tombstone, which to the operator is a 404; the staged files stay, since
// they die by their own clock.
func TestWorkspaces_Remove(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	stage(t, p, w, "a.txt")
	for range 2 {
		isJSON(t, call(t, p, "DELETE", "/workspaces/"+w.ID, admin, ""), http.StatusOK, `{"status":"removed"}`)
	}
	for _, request := range [][3]string{
		{"GET", "", ""}, {"GET", "/tokens", ""}, {"POST", "/tokens", ""}, {"GET", "/activity", ""}, {"GET", "/pending-uploads", ""},
		{"POST", "/a2a", `{"method":"x"}`}, {"POST", "/chat/uploads", "x"},
	} {
		for _, id := range []string{w.ID, nobody} {
			isError(t, call(t, p, request[0], "/workspaces/"+id+request[1], admin, request[2]), http.StatusNotFound, "workspace_not_found", "workspace not found")
		}
	}
	isError(t, call(t, p, "DELETE", "/workspaces/"+nobody, admin, ""), http.StatusNotFound, "workspace_not_found", "workspace not found")
	var staged int
	if err := p.DB.QueryRowContext(t.Context(), `SELECT count(*) FROM pending_uploads WHERE workspace_id = $1`, w.ID).Scan(&staged); err != nil || staged != 1 {
		t.Errorf("%d staged files (%v), want 1", staged, err)
	}
}

// token is a token as the list shows it.
type token struct {
	ID       string  `json:"id"`
	Prefix   string  `json:"prefix"`
	Created  string  `json:"created_at"`
	LastUsed *string `json:"last_used_at"`
}

func tokens(t testing.TB, p *servertest.Platform, w servertest.Workspace) []token {
	t.Helper()
	r := call(t, p, "GET", "/workspaces/"+w.ID+"/tokens", w.Token, "")
	if r.Status != http.StatusOK || strings.Contains(string(r.Body), w.Token) {
		t.Fatalf("tokens: %d %s", r.Status, r.Body)
	}
	var list []token
	r.JSON(t, &list)
	return list
}

func TestTokens_MintListRevoke(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w, other := p.Create(t, "poll", ""), p.Create(t, "poll", "")
	path := "/workspaces/" + w.ID + "/tokens"
	id, minted := mint(t, p, w)
	if minted == w.Token || len(minted) != len("mol_ws_")+43 {
		t.Errorf("minted %q", minted)
	}
	list := tokens(t, p, w)
	if len(list) != 2 || list[1].ID != id || list[1].Prefix != minted[:13] || list[0].Prefix != w.Token[:13] || list[1].LastUsed != nil {
		t.Fatalf("list %+v, want the first token and %s", list, minted[:13])
	}
	// Its use is noted soon after, apart from the request.
	must(t, p, http.StatusOK, "GET", path, minted, "", nil)
	used := func() bool {
		return slices.ContainsFunc(tokens(t, p, w), func(k token) bool { return k.ID == id && k.LastUsed != nil })
	}
	for deadline := time.Now().Add(testTimeout); !used(); {
		if time.Now().After(deadline) {
			t.Fatal("the use of the token is not noted")
		}
	}
	isError(t, call(t, p, "DELETE", "/workspaces/"+other.ID+"/tokens/"+id, other.Token, ""), http.StatusNotFound, "token_not_found", "token")
	must(t, p, http.StatusOK, "GET", path, minted, "", nil)

	isJSON(t, call(t, p, "DELETE", path+"/"+id, w.Token, ""), http.StatusOK, `{"status":"revoked"}`)
	must(t, p, http.StatusUnauthorized, "GET", path, minted, "", nil)
	for _, gone := range []string{id, nobody} {
		isError(t, call(t, p, "DELETE", path+"/"+gone, w.Token, ""), http.StatusNotFound, "token_not_found", "token")
	}
	if list := tokens(t, p, w); len(list) != 1 || list[0].ID == id {
		t.Errorf("after: %+v", list)
	}
	if uuid.Validate(id) != nil {
		t.Errorf("id %s", id)
	}
}

func TestTokens_AreAtMostAHundred(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	var id string
	for range wsauth.MaxTokens - 1 {
		id, _ = mint(t, p, w)
	}
	path := "/workspaces/" + w.ID + "/tokens"
	isError(t, call(t, p, "POST", path, w.Token, ""), http.StatusConflict, "too_many_tokens", "revoke one")
	must(t, p, http.StatusOK, "DELETE", path+"/"+id, w.Token, "", nil)
	mint(t, p, w) // only the live ones count
}

// What the database keeps of a token is of no use to who reads it.
func TestTokens_AreNotStored(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	var leaks int
	err := p.DB.QueryRowContext(t.Context(), `SELECT count(*) FROM workspace_tokens AS t WHERE t::text LIKE '%' || $1 || '%'
		OR t::text LIKE '%' || encode(convert_to($1, 'UTF8'), 'hex') || '%'`, w.Token[13:]).Scan(&leaks)
	if err != nil || leaks != 0 {
		t.Errorf("%d rows with a token (%v)", leaks, err)
	}
}
