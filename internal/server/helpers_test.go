package server_test

import (
	"bytes"
	"encoding/json"
	"mime/multipart"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/server"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

const (
	admin = servertest.AdminToken

	// nobody is a UUID that is no workspace, file, token or row.
	nobody = "00000000-0000-4000-8000-000000000000"

	// unknownToken has the form of a token.
	unknownToken = "mol_ws_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

	mib = 1 << 20

	// testTimeout bounds how long a test waits for one event.
	testTimeout = 20 * time.Second
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// routes lists the platform's routes.
func routes(t testing.TB) gin.RoutesInfo {
	t.Helper()
	list, err := server.Routes()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// call sends a JSON body, "" for none.
func call(t testing.TB, p *servertest.Platform, method, path, token, body string) *servertest.Response {
	t.Helper()
	r := servertest.Request{Method: method, Path: path, Token: token}
	if body != "" {
		r.Header = http.Header{"Content-Type": {"application/json"}}
		r.Body = strings.NewReader(body)
	}
	return p.Do(t, r)
}

// must is call for what must have that status; it reads the answer into v unless that is nil.
func must(t testing.TB, p *servertest.Platform, status int, method, path, token, body string, v any) {
	t.Helper()
	r := call(t, p, method, path, token, body)
	if r.Status != status {
		t.Fatalf("%s %s: %d %s, want %d", method, path, r.Status, r.Body, status)
	}
	if v != nil {
		r.JSON(t, v)
	}
}

// isJSON fails the test unless the answer is this JSON, field for field.
func isJSON(t testing.TB, r *servertest.Response, status int, want string) {
	t.Helper()
	var got, expected any
	r.JSON(t, &got)
	if err := json.Unmarshal([]byte(want), &expected); err != nil {
		t.Fatalf("want %s: %v", want, err)
	}
	if r.Status != status || !reflect.DeepEqual(got, expected) {
		t.Errorf("answer %d %s, want %d %s", r.Status, r.Body, status, want)
	}
}

// isError fails the test unless the answer is an error with that code whose sentence contains
// text.
func isError(t testing.TB, r *servertest.Response, status int, code, text string) {
	t.Helper()
	var got struct{ Error, Code string }
	r.JSON(t, &got)
	if r.Status != status || got.Code != code || !strings.Contains(got.Error, text) {
		t.Errorf("answer %d %s, want %d %s with %q", r.Status, r.Body, status, code, text)
	}
}

// steady returns the header without what differs between any two answers.
func steady(h http.Header) http.Header {
	h = h.Clone()
	h.Del("Date")
	h.Del("X-Request-Id")
	return h
}

// same fails the test unless the answers cannot be told apart.
func same(t testing.TB, got, want *servertest.Response) {
	t.Helper()
	if got.Status != want.Status || !bytes.Equal(got.Body, want.Body) || !reflect.DeepEqual(steady(got.Header), steady(want.Header)) {
		t.Errorf("answer can be told apart:\n%d %v %s\n%d %v %s", got.Status, steady(got.Header), got.Body,
			want.Status, steady(want.Header), want.Body)
	}
}

// upload is a file as an upload's answer describes it.
type upload struct {
	URI    string `json:"uri"`
	Name   string `json:"name"`
	Type   string `json:"mimeType"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// ID is the file's id, from its uri.
func (u upload) ID() string { return u.URI[strings.LastIndexByte(u.URI, '/')+1:] }

// uploadForm sends one part for each name, with the name as content.
func uploadForm(t testing.TB, p *servertest.Platform, id, token string, names ...string) *servertest.Response {
	t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for _, name := range names {
		part, err := form.CreateFormFile("files", name)
		if err == nil {
			_, err = part.Write([]byte(name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := form.Close(); err != nil {
		t.Fatal(err)
	}
	return p.Do(t, servertest.Request{Method: http.MethodPost, Path: "/workspaces/" + id + "/chat/uploads", Token: token,
		Header: http.Header{"Content-Type": {form.FormDataContentType()}}, Body: &body})
}

// stage uploads files that must be staged.
func stage(t testing.TB, p *servertest.Platform, w servertest.Workspace, names ...string) []upload {
	t.Helper()
	r := uploadForm(t, p, w.ID, w.Token, names...)
	if r.Status != http.StatusOK {
		t.Fatalf("upload: %d %s", r.Status, r.Body)
	}
	var answer struct{ Files []upload }
	r.JSON(t, &answer)
	if len(answer.Files) != len(names) {
		t.Fatalf("upload of %d files: %s", len(names), r.Body)
	}
	return answer.Files
}

// remove makes a workspace a tombstone.
func remove(t testing.TB, p *servertest.Platform, w servertest.Workspace) {
	t.Helper()
	must(t, p, http.StatusOK, http.MethodDelete, "/workspaces/"+w.ID, admin, "", nil)
}

// mint makes a further token.
func mint(t testing.TB, p *servertest.Platform, w servertest.Workspace) (id, token string) {
	t.Helper()
	var made struct {
		ID    string `json:"id"`
		Token string `json:"auth_token"`
	}
	must(t, p, http.StatusCreated, http.MethodPost, "/workspaces/"+w.ID+"/tokens", w.Token, "", &made)
	return made.ID, made.Token
}

// exec changes the database behind the platform's back.
func exec(t testing.TB, p *servertest.Platform, statement string, args ...any) {
	t.Helper()
	if _, err := p.DB.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}
