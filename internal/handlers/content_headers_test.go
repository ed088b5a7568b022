package handlers_test

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strconv"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

var pendingNotFound = map[string]any{
	"error": "pending upload not found, expired, or already acked", "code": "pending_upload_not_found",
}

// fetch reads a file as its workspace does; header has pairs of names and values.
func fetch(t testing.TB, p *servertest.Platform, w servertest.Workspace, f stagedFile, header ...string) *servertest.Response {
	t.Helper()
	r := servertest.Request{Path: pendingPath(w, f, "/content"), Token: w.Token, Header: http.Header{}}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return p.Do(t, r)
}

// wantFileHeader checks the headers that every answer with a file, or about one, has.
func wantFileHeader(t testing.TB, header http.Header, f stagedFile, content string) {
	t.Helper()
	digest := sha256.Sum256([]byte(content))
	for name, want := range map[string]string{
		"ETag": `"` + f.SHA256 + `"`, "Repr-Digest": "sha-256=:" + base64.StdEncoding.EncodeToString(digest[:]) + ":",
		"Content-Disposition": `attachment; filename="` + f.Name + `"`, "Accept-Ranges": "bytes",
		"Cache-Control": "private, no-store", "Cross-Origin-Resource-Policy": "same-origin",
	} {
		if got := header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	safe(t, header)
}

// Planted: nosniff not sent; the type sniffed; the digest in hex.
func TestContent_BytesAndHeader(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	contents := []string{"", "x", "<script>alert(1)</script>", pattern(mib - 1), pattern(mib), pattern(mib + 1), pattern(3*mib + 4097)}
	parts := make([]part, len(contents))
	for i, content := range contents {
		parts[i] = file("odd näme.html", "text/html; charset=utf-8", content)
	}
	for i, f := range accepted(t, post(t, p, w, parts...)) {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			r := p.Do(t, servertest.Request{Method: method, Path: pendingPath(w, f, "/content"), Token: w.Token})
			wantBody := contents[i]
			if method == http.MethodHead {
				wantBody = ""
			}
			if r.Status != http.StatusOK || string(r.Body) != wantBody {
				t.Errorf("%s of %d bytes: %d with %d bytes", method, f.Size, r.Status, len(r.Body))
			}
			if got := r.Header.Get("Content-Length"); got != strconv.Itoa(len(contents[i])) {
				t.Errorf("%s: Content-Length is %q, want %d", method, got, len(contents[i]))
			}
			if got := r.Header.Get("Content-Type"); got != "text/html" {
				t.Errorf("%s: Content-Type is %q, want the stored one", method, got)
			}
			wantFileHeader(t, r.Header, f, contents[i])
		}
	}
}

// Planted: the ETag of another file.
func TestContent_ConditionalRequests(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	const content = "0123456789"
	f := stage(t, p, w, content)
	tag := `"` + f.SHA256 + `"`
	cases := []struct {
		name   string
		header []string
		status int
		body   string
	}{
		{"If-None-Match hits", []string{"If-None-Match", tag}, 304, ""},
		{"If-None-Match hits weakly", []string{"If-None-Match", `"x", W/` + tag}, 304, ""},
		{"If-None-Match any", []string{"If-None-Match", "*"}, 304, ""},
		{"If-None-Match misses", []string{"If-None-Match", `"x"`}, 200, content},
		{"If-Range hits", []string{"If-Range", tag, "Range", "bytes=2-4"}, 206, "234"},
		{"If-Range misses", []string{"If-Range", `"x"`, "Range", "bytes=2-4"}, 200, content},
		{"If-Range is weak", []string{"If-Range", "W/" + tag, "Range", "bytes=2-4"}, 200, content},
		{"If-Range is a date", []string{"If-Range", "Mon, 02 Jan 2006 15:04:05 GMT", "Range", "bytes=2-4"}, 200, content},
		{"If-Match hits", []string{"If-Match", tag}, 200, content},
	}
	for _, c := range cases {
		r := fetch(t, p, w, f, c.header...)
		if r.Status != c.status || string(r.Body) != c.body {
			t.Errorf("%s: %d %q, want %d %q", c.name, r.Status, r.Body, c.status, c.body)
		}
		if c.status == http.StatusNotModified {
			if got := r.Header.Get("ETag"); got != tag {
				t.Errorf("%s: ETag is %q", c.name, got)
			}
			safe(t, r.Header)
			continue
		}
		wantFileHeader(t, r.Header, f, content)
	}
	r := fetch(t, p, w, f, "If-Match", `"x"`)
	answered(t, r, http.StatusPreconditionFailed, map[string]any{
		"error": "If-Match does not match the file's ETag", "code": "precondition_failed",
	})
}

// Planted: the workspace missing in the query.
func TestContent_UnreadableFilesGetTheSame404(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w, other := p.Create(t, "poll", ""), p.Create(t, "poll", "")
	expired, swept, foreign := stage(t, p, w, "expired"), stage(t, p, w, "swept"), stage(t, p, other, "foreign")
	unknown := stagedFile{URI: "/" + uuid.NewString()}
	exec(t, p, "UPDATE pending_uploads SET expires_at = now() - interval '1 second' WHERE file_id = $1", expired.ID())
	exec(t, p, "DELETE FROM pending_uploads WHERE file_id = $1", swept.ID())

	routes := []struct{ method, suffix string }{
		{http.MethodGet, "/content"}, {http.MethodHead, "/content"}, {http.MethodPost, "/ack"}, {http.MethodGet, ""},
	}
	for _, route := range routes {
		var first *servertest.Response
		for _, f := range []stagedFile{unknown, expired, swept, foreign} {
			r := p.Do(t, servertest.Request{
				Method: route.method, Path: pendingPath(w, f, route.suffix), Token: w.Token, Header: http.Header{"X-Request-Id": {"same"}},
			})
			r.Header.Del("Date")
			if first == nil {
				first = r
			}
			if route.method != http.MethodHead {
				answered(t, r, http.StatusNotFound, pendingNotFound)
			}
			if r.Status != http.StatusNotFound || string(r.Body) != string(first.Body) || !equalHeader(r.Header, first.Header) {
				t.Errorf("%v: %d %v %s, unlike %v %s", route, r.Status, r.Header, r.Body, first.Header, first.Body)
			}
		}
		r := p.Do(t, servertest.Request{Method: route.method, Path: "/workspaces/" + w.ID + "/pending-uploads/nonsense" + route.suffix, Token: w.Token})
		if r.Status != http.StatusBadRequest {
			t.Errorf("%v of no UUID: %d", route, r.Status)
		}
		if route.method != http.MethodHead {
			answered(t, r, http.StatusBadRequest, map[string]any{"error": "invalid file_id", "code": "invalid_file_id"})
		}
	}
	if got := fetch(t, p, other, foreign); string(got.Body) != "foreign" {
		t.Errorf("its own workspace reads %q", got.Body)
	}
}

func equalHeader(a, b http.Header) bool {
	if len(a) != len(b) {
		return false
	}
	for name := range a {
		if a.Get(name) != b.Get(name) {
			return false
		}
	}
	return true
}

// An acked file stays readable after its expiry too.
func TestContent_AckedFileStaysReadable(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	f := stage(t, p, w, "kept")
	ack(t, p, w, f)
	exec(t, p, "UPDATE pending_uploads SET expires_at = now() - interval '1 hour' WHERE file_id = $1", f.ID())
	if r := fetch(t, p, w, f); r.Status != http.StatusOK || string(r.Body) != "kept" {
		t.Errorf("acked file: %d %s", r.Status, r.Body)
	}
}
