package server_test

import (
	"bytes"
	"encoding/json"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/objectstore/s3test"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// stageBytes stages one file.
func stageBytes(t *testing.T, p *servertest.Platform, w servertest.Workspace, content string) upload {
	t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	part, err := form.CreateFormFile("files", "a.bin")
	if err == nil {
		_, err = io.WriteString(part, content)
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = form.Close()
	r := p.Do(t, servertest.Request{Method: http.MethodPost, Path: "/workspaces/" + w.ID + "/chat/uploads", Token: w.Token,
		Header: http.Header{"Content-Type": {form.FormDataContentType()}}, Body: &body})
	var answer struct{ Files []upload }
	if err := json.Unmarshal(r.Body, &answer); err != nil || len(answer.Files) != 1 {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	return answer.Files[0]
}

func contentPath(w servertest.Workspace, f upload) string {
	return "/workspaces/" + w.ID + "/pending-uploads/" + f.URI[strings.LastIndexByte(f.URI, '/')+1:] + "/content"
}

// A client that asks for it, where it is allowed, is redirected to the store for the bytes of a large file, and gets them
// there without a token. All others are answered as always. Planted: the setting ignored; a range
// redirected; the client's word not asked for; the page of HTML that gin adds.
func TestContent_IsRedirectedIfAskedForAndAllowed(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("0123456789abcdef", 10_000)
	dsn, url := pgtest.New(t), s3test.BucketURL(t)
	start := func(storage, redirect string) *servertest.Platform {
		return servertest.Start(t, func(s *config.Settings) { s.DatabaseURL, s.StorageURL, s.StorageRedirect = dsn, storage, redirect })
	}
	p := start(url, "true")
	w := p.Create(t, "poll", "")
	large, small := stageBytes(t, p, w, content), stageBytes(t, p, w, "small")

	get := func(p *servertest.Platform, method, path string, header http.Header) (*http.Response, string) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, p.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if header != nil {
			request.Header = header
		}
		request.Header.Set("Authorization", "Bearer "+w.Token)
		answer, err := http.DefaultTransport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer, string(body)
	}
	answer, body := get(p, "GET", contentPath(w, large)+"?redirect=true", nil)
	location := answer.Header.Get("Location")
	if answer.StatusCode != http.StatusTemporaryRedirect || body != "" || answer.Header.Get("Cache-Control") != "no-store" ||
		!strings.HasPrefix(answer.Header.Get("Repr-Digest"), "sha-256=:") || strings.Contains(location, w.Token) {
		t.Fatalf("%d %v %q", answer.StatusCode, answer.Header, body)
	}
	stored, err := http.Get(location) // as any client does
	if err != nil {
		t.Fatal(err)
	}
	defer stored.Body.Close()
	if got, err := io.ReadAll(stored.Body); err != nil || string(got) != content {
		t.Errorf("from the store: %d, %d bytes, %v", stored.StatusCode, len(got), err)
	}

	inFolder := start("file://"+t.TempDir(), "true")
	inOne := stageBytes(t, inFolder, w, content)
	notAllowed := start(url, "false")
	for name, c := range map[string]struct {
		p      *servertest.Platform
		method string
		path   string
		header http.Header
		status int
		body   string
	}{
		"not asked for":   {p, "GET", contentPath(w, large), nil, 200, content},
		"asked not to":    {p, "GET", contentPath(w, large) + "?redirect=false", nil, 200, content},
		"HEAD":            {p, "HEAD", contentPath(w, large) + "?redirect=true", nil, 200, ""},
		"a range":         {p, "GET", contentPath(w, large) + "?redirect=true", http.Header{"Range": {"bytes=16-31"}}, 206, content[:16]},
		"a small file":    {p, "GET", contentPath(w, small) + "?redirect=true", nil, 200, "small"},
		"not allowed":     {notAllowed, "GET", contentPath(w, large) + "?redirect=true", nil, 200, content},
		"cannot be":       {inFolder, "GET", contentPath(w, inOne) + "?redirect=true", nil, 200, content},
		"another setting": {inFolder, "GET", contentPath(w, large), nil, 200, content},
	} {
		if answer, body := get(c.p, c.method, c.path, c.header); answer.StatusCode != c.status || body != c.body {
			t.Errorf("%s: %d, %d bytes", name, answer.StatusCode, len(body))
		}
	}
	isError(t, call(t, p, "GET", contentPath(w, large)+"?redirect=perhaps", w.Token, ""), 400, "invalid_parameter", "redirect must be")
	missing := contentPath(w, upload{URI: "/4b0c2f6e-5d0a-4c8e-9a55-1d6d8f2b7a10"})
	isError(t, call(t, p, "GET", missing+"?redirect=true", w.Token, ""), 404, "pending_upload_not_found", "not found")
	checkRedirect(t, p, w, contentPath(w, large)+"?redirect=true")

	metrics := string(call(t, p, "GET", "/metrics", "", "").Body)
	for _, name := range []string{`molecule_object_duration_seconds_count{operation="write"} `, `molecule_object_errors_total{operation="read"} 0`, "molecule_garbage_objects 0"} {
		if !strings.Contains(metrics, name) {
			t.Errorf("no metric %s", name)
		}
	}
}

// checkRedirect has the OpenAPI file checked against the redirect itself.
func checkRedirect(t *testing.T, p *servertest.Platform, w servertest.Workspace, path string) {
	t.Helper()
	r := p.DoOnce(t, servertest.Request{Path: path, Token: w.Token})
	if r.Status != http.StatusTemporaryRedirect {
		t.Errorf("%d %s", r.Status, r.Body)
	}
}
