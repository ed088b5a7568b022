package server_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// notUUIDs are what must not pass for an id, though some would parse as one.
var notUUIDs = []string{
	"x", "%20", "00000000-0000-4000-8000-00000000000", "00000000-0000-4000-8000-0000000000000", "0000000000004000800000000000000g",
	"00000000000040008000000000000000", "%7B00000000-0000-4000-8000-000000000000%7D", "urn:uuid:00000000-0000-4000-8000-000000000000",
	"g0000000-0000-4000-8000-000000000000", "00000000-0000-4000-8000-00000000000%00", "';drop%20table%20workspaces--",
}

func TestRoutes_RefuseWhatIsNoUUID(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	refused := 0
	for _, route := range routes(t) {
		for parameter, want := range map[string]string{
			":id":       `{"error":"invalid workspace ID","code":"invalid_workspace_id"}`,
			":file_id":  `{"error":"invalid file_id","code":"invalid_file_id"}`,
			":token_id": `{"error":"invalid token_id","code":"invalid_token_id"}`,
		} {
			if !strings.Contains(route.Path+"/", parameter+"/") {
				continue
			}
			for _, bad := range notUUIDs {
				path := strings.Replace(route.Path+"/", parameter+"/", bad+"/", 1)
				path = strings.NewReplacer(":id", w.ID, ":file_id", nobody, ":token_id", nobody).Replace(path)
				r := call(t, p, route.Method, strings.TrimSuffix(path, "/"), admin, "")
				if route.Method != http.MethodHead {
					isJSON(t, r, http.StatusBadRequest, want)
				} else if r.Status != http.StatusBadRequest {
					t.Errorf("HEAD %s: %d", path, r.Status)
				}
				refused++
			}
		}
	}
	if refused < 100 {
		t.Errorf("%d requests made; the list of routes is short", refused)
	}
}

func TestRoutes_OtherPathsAreNotFoundInJSON(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	for _, path := range []string{
		"/", "/nowhere", "/workspaces/", "/health/", "//health", "/HEALTH", "/metrics.html", "/workspaces/" + nobody + "/", "/workspaces/" + nobody + "/nothing",
		"/workspaces/" + nobody + "%2Factivity/x", "/.git/config", "/%3Cscript%3E", "/..%2f..%2fetc/passwd", "/index.html?a=b",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			r := call(t, p, method, path, "", "")
			isError(t, r, http.StatusNotFound, "not_found", "no such path")
			if r.Header.Get("Content-Type") != "application/json; charset=utf-8" || r.Header.Get("Location") != "" {
				t.Errorf("%s %s: %v", method, path, r.Header)
			}
		}
	}
}

func TestRoutes_OtherMethodsAreNotAllowedInJSON(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	served := map[string]bool{}
	for _, route := range routes(t) {
		served[route.Method+" "+route.Path] = true
	}
	for _, route := range routes(t) {
		path := strings.NewReplacer(":id", nobody, ":file_id", nobody, ":token_id", nobody).Replace(route.Path)
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"} {
			if served[method+" "+route.Path] {
				continue
			}
			r := call(t, p, method, path, "", "")
			if !strings.Contains(r.Header.Get("Allow"), route.Method) {
				t.Errorf("%s %s: Allow %q lacks %s", method, path, r.Header.Get("Allow"), route.Method)
			}
			if method != http.MethodHead {
				isError(t, r, http.StatusMethodNotAllowed, "method_not_allowed", "other methods")
			}
		}
	}
}

// Every route that takes JSON takes a MiB of it and no more.
func TestRoutes_BoundJSONBodies(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	exact := func(n int, start string) string {
		return start + `,"filler":"` + strings.Repeat("x", n-len(start)-len(`,"filler":""}`)) + `"}`
	}
	for route, c := range map[string]struct {
		start  string
		status int
	}{
		"/registry/register":           {`{"id":"` + w.ID + `","agent_card":{}`, http.StatusOK},
		"/registry/heartbeat":          {`{"workspace_id":"` + w.ID + `"`, http.StatusOK},
		"/workspaces":                  {`{"name":"x","delivery_mode":"poll"`, http.StatusCreated},
		"/workspaces/" + w.ID + "/a2a": {`{"method":"x"`, http.StatusOK},
	} {
		must(t, p, c.status, http.MethodPost, route, admin, exact(mib, c.start), nil)
		isJSON(t, call(t, p, http.MethodPost, route, admin, exact(mib+1, c.start)), http.StatusRequestEntityTooLarge,
			`{"error":"request body exceeds limit","code":"request_too_large","max":1048576}`)
	}
}

func TestRoutes_RefuseWhatIsNoJSON(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	for _, route := range []string{"/registry/register", "/registry/heartbeat", "/workspaces", "/workspaces/" + w.ID + "/a2a"} {
		for _, body := range []string{"", " ", "{", "hello", `{"id":}`, "{} {}", "[", "\x00", `{"name":"a`, "<html>"} {
			r := p.Do(t, servertest.Request{Method: http.MethodPost, Path: route, Token: admin, Body: strings.NewReader(body)})
			isError(t, r, http.StatusBadRequest, "invalid_json", "request body")
		}
		r := call(t, p, http.MethodPost, route, admin, `["an array"]`)
		isError(t, r, http.StatusBadRequest, "invalid_json", "request body")
	}
	// A value of the wrong type is named, in words of JSON.
	r := call(t, p, http.MethodPost, "/registry/register", admin, `{"id":"`+w.ID+`","agent_card":{},"delivery_mode":7}`)
	isError(t, r, http.StatusBadRequest, "invalid_request", "delivery_mode must be of type string")
}

// Whether a file never was or is somebody else's: nobody can tell, and nothing happens to it.
func TestPendingUploads_OtherWorkspaceLooksMissing(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	own, other := p.Create(t, "poll", ""), p.Create(t, "poll", "")
	file := stage(t, p, other, "a.txt")[0].ID()
	uploads := "/workspaces/" + own.ID + "/pending-uploads"
	for _, token := range []string{own.Token, admin} {
		for _, request := range [][2]string{
			{"GET", "/%s/content"}, {"HEAD", "/%s/content"}, {"GET", "/%s"}, {"POST", "/%s/ack"}, {"GET", "?after=%s"},
		} {
			ask := func(id string) *servertest.Response {
				return call(t, p, request[0], uploads+strings.Replace(request[1], "%s", id, 1), token, "")
			}
			foreign := ask(file)
			same(t, foreign, ask(nobody))
			if request[0] != http.MethodHead {
				isJSON(t, foreign, http.StatusNotFound, `{"error":"pending upload not found, expired, or already acked","code":"pending_upload_not_found"}`)
			} else if foreign.Status != http.StatusNotFound {
				t.Errorf("HEAD: %d", foreign.Status)
			}
		}
		ranged := p.Do(t, servertest.Request{Path: uploads + "/" + file + "/content", Token: token, Header: http.Header{"Range": {"bytes=0-0"}}})
		same(t, ranged, call(t, p, "GET", uploads+"/"+nobody+"/content", token, ""))
	}
	var left struct{ State string }
	must(t, p, http.StatusOK, "GET", "/workspaces/"+other.ID+"/pending-uploads/"+file, other.Token, "", &left)
	if left.State != "staged" {
		t.Errorf("the other's file is %s", left.State)
	}
	var list []json.RawMessage
	must(t, p, http.StatusOK, "GET", uploads+"?state=all", own.Token, "", &list)
	if len(list) != 0 {
		t.Errorf("the other's file is listed: %s", list)
	}
}

// http.ServeContent would answer these with text, or with nothing.
func TestContent_RefusalsAreJSON(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	path := "/workspaces/" + w.ID + "/pending-uploads/" + stage(t, p, w, "a.txt")[0].ID() + "/content"
	for _, c := range []struct {
		name, value, code string
		status            int
	}{
		{"If-Match", `"another"`, "precondition_failed", http.StatusPreconditionFailed},
		{"Range", "bytes=1000-", "range_not_satisfiable", http.StatusRequestedRangeNotSatisfiable},
		{"Range", "bytes=broken", "range_not_satisfiable", http.StatusRequestedRangeNotSatisfiable},
	} {
		r := p.Do(t, servertest.Request{Path: path, Token: w.Token, Header: http.Header{c.name: {c.value}}})
		isError(t, r, c.status, c.code, "")
		if head := p.Do(t, servertest.Request{Method: "HEAD", Path: path, Token: w.Token, Header: http.Header{c.name: {c.value}}}); head.Status != c.status {
			t.Errorf("HEAD with %s: %d", c.value, head.Status)
		}
	}
	r := p.Do(t, servertest.Request{Path: path, Token: w.Token, Header: http.Header{"If-None-Match": {"*"}}})
	if r.Status != http.StatusNotModified {
		t.Errorf("If-None-Match: %d %s", r.Status, r.Body)
	}
}

func TestUploadLimits_AreTheConfiguredOnes(t *testing.T) {
	t.Parallel()
	isJSON(t, call(t, servertest.Start(t), "GET", "/uploads/limits", "", ""), http.StatusOK,
		`{"per_file_bytes":104857600,"per_request_bytes":104857600,"max_files":64,"expires_after_seconds":86400}`)
	p := servertest.Start(t, func(s *config.Settings) {
		s.MaxFileBytes, s.MaxRequestBytes, s.MaxFiles, s.PendingTTL = "1KiB", "2KiB", "3", "90m"
	})
	isJSON(t, call(t, p, "GET", "/uploads/limits", "", ""), http.StatusOK,
		`{"per_file_bytes":1024,"per_request_bytes":2048,"max_files":3,"expires_after_seconds":5400}`)
}

// Times are in UTC whatever the database's time zone is.
func TestAnswers_HaveTimesInUTC(t *testing.T) {
	t.Parallel()
	dsn := zonedDatabase(t)
	p := servertest.Start(t, func(s *config.Settings) { s.DatabaseURL = dsn })
	w := p.Create(t, "poll", "")
	file := stage(t, p, w, "a.txt")[0].ID()
	must(t, p, http.StatusOK, "POST", "/registry/heartbeat", w.Token, `{"workspace_id":"`+w.ID+`"}`, nil)
	mint(t, p, w)
	// That they end in Z is what Do checks.
	for _, path := range []string{"", "/tokens", "/activity", "/pending-uploads", "/pending-uploads/" + file} {
		must(t, p, http.StatusOK, "GET", "/workspaces/"+w.ID+path, w.Token, "", nil)
	}
	must(t, p, http.StatusOK, "GET", "/workspaces", admin, "", nil)
}
