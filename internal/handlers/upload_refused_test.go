package handlers_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

var (
	notFound     = map[string]any{"error": "workspace not found", "code": "workspace_not_found"}
	notMultipart = map[string]any{"error": "Content-Type must be multipart/form-data with a boundary", "code": "not_multipart"}
	brokenBody   = map[string]any{"error": "request body is broken or was cut; send it again", "code": "broken_body"}
	brokenPart   = map[string]any{"error": "a part has no readable Content-Disposition: form-data", "code": "broken_multipart"}
	noFiles      = map[string]any{"error": "no part named files; send each file as a part of that name", "code": "no_files"}
)

func requestTooLarge(limit int64) map[string]any {
	return map[string]any{"error": "request body exceeds limit", "code": "request_too_large", "max": limit}
}

func TestUpload_NoSuchWorkspace(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	unknown := servertest.Workspace{ID: uuid.NewString(), Token: servertest.AdminToken}
	answered(t, post(t, p, unknown, file("a", "", "a")), http.StatusNotFound, notFound)
	for _, mode := range []string{"poll", "push"} {
		w := p.Create(t, mode, "")
		w.Token = servertest.AdminToken
		p.Do(t, servertest.Request{Method: http.MethodDelete, Path: "/workspaces/" + w.ID, Token: w.Token})
		answered(t, post(t, p, w, file("a", "", "a")), http.StatusNotFound, notFound)
	}
	nothingStaged(t, p)
}

func TestUpload_NotMultipart(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	for _, contentType := range []string{
		"", "application/json", "multipart/mixed; boundary=" + boundary, "multipart/form-data", `multipart/form-data; boundary=""`,
		"multipart/form-data; boundary", "form-data; boundary=" + boundary,
	} {
		request := uploadRequest(w, strings.NewReader(form(file("a", "", "a"))))
		request.Header.Set("Content-Type", contentType)
		answered(t, p.Do(t, request), http.StatusBadRequest, notMultipart)
	}
	nothingStaged(t, p)
}

// Planted: a limit of files or parts off by one; a batch staged before its last part is
// read; the per-file cap off by one; no check of the sum.
func TestUpload_RefusedBodyLeavesNothingStaged(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, smallCaps)
	w := p.Create(t, "poll", "")
	good := file("good.txt", "", "stays out too")
	repeat := func(n int, one part) []part {
		parts := make([]part, n)
		for i := range parts {
			parts[i] = one
		}
		return parts
	}
	tooLong := map[string]any{
		"error": "file exceeds per-file cap", "code": "file_too_large", "filename": "too_long.bin", "max": mib,
	}
	cases := []struct {
		name   string
		body   string
		status int
		want   map[string]any
	}{
		{"empty", "", 400, brokenBody},
		{"not what it says", "just text", 400, brokenBody},
		{"another boundary", strings.ReplaceAll(form(good), boundary, "another"), 400, brokenBody},
		{"no parts", form(), 400, noFiles},
		{"no part named files", form(field("message", "hello"), part{`Content-Disposition: form-data; name="file"; filename="a"`, "a"}), 400, noFiles},
		{"part without a disposition", form(good, part{"Content-Type: text/plain", "a"}), 400, brokenPart},
		{"part without a header", form(good, part{"", "a"}), 400, brokenPart},
		{"part that is no form-data", form(good, part{`Content-Disposition: attachment; name="files"`, "a"}), 400, brokenPart},
		{"part header that is none", form(good, part{"no colon here", "a"}), 400, brokenBody},
		{"too many files", form(repeat(65, good)...), 400, map[string]any{"error": "too many files", "code": "too_many_files", "max": 64}},
		{
			"too many other parts", form(append(repeat(65, field("other", "")), good)...), 400,
			map[string]any{"error": "too many parts that are not files", "code": "too_many_parts", "max": 64},
		},
		{
			"part header too long", form(good, file(strings.Repeat("n", 64<<10), "", "a")), 400,
			map[string]any{"error": "a part's header is longer than 32768 bytes", "code": "part_header_too_large", "max": 32768},
		},
		{"file over the cap", form(good, file("a/too long.bin", "", pattern(mib+1)), good), 413, tooLong},
		{"file over the cap at the end", form(good, file("too long.bin", "", pattern(mib+1))), 413, tooLong},
		{"files over the cap together", form(file("a", "", pattern(mib)), file("b", "", pattern(mib)), file("c", "", "1")), 413, requestTooLarge(2 * mib)},
		{"fields over the cap", form(good, field("other", pattern(3*mib))), 413, requestTooLarge(2 * mib)},
	}
	for _, c := range cases {
		for _, way := range []string{"length told", "chunked"} {
			t.Run(c.name+", "+way, func(t *testing.T) {
				var body io.Reader = strings.NewReader(c.body)
				if way == "chunked" {
					body = io.MultiReader(body) // hides the length
				}
				answered(t, p.Do(t, uploadRequest(w, body)), c.status, c.want)
			})
		}
	}
	nothingStaged(t, p)
}

// Planted: no check of Content-Length.
func TestUpload_ContentLengthOverTheCapIsRefusedBeforeAByteIsRead(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, smallCaps)
	for _, w := range []servertest.Workspace{p.Create(t, "poll", ""), p.Create(t, "push", "http://127.0.0.1:9")} {
		c := dial(t, p.URL)
		c.send(t, uploadHeader(w, fmt.Sprintf("Content-Length: %d", 3*mib+1)))
		answered(t, c.response(t), http.StatusRequestEntityTooLarge, requestTooLarge(2*mib))
	}
	nothingStaged(t, p)
}

// A truncated body is refused as a whole, wherever it was truncated: here at every byte of a body whose
// Content-Length matches, so that only the missing boundary shows it.
func TestUpload_BodyThatEndsTooEarlyIsRefused(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	whole := form(file("a.txt", "text/plain", "first"), file("b.txt", "text/plain", "second"))
	end := strings.LastIndex(whole, "--") + len("--")
	for n := range end {
		r := p.Do(t, uploadRequest(w, strings.NewReader(whole[:n])))
		if r.Status != http.StatusBadRequest {
			t.Errorf("body cut after %q: %d %s", whole[:n], r.Status, r.Body)
		}
	}
	nothingStaged(t, p)
	for _, n := range []int{end, len(whole)} { // the last line break may be missing
		if files := accepted(t, p.Do(t, uploadRequest(w, strings.NewReader(whole[:n])))); len(files) != 2 {
			t.Errorf("body of %d bytes: %d files, want 2", n, len(files))
		}
	}
}

// A client that disconnects in the middle of its body leaves nothing staged, with and without a Content-Length.
func TestUpload_DisconnectedClientLeavesNothingStaged(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	whole := form(file("a.txt", "", pattern(3*mib)), file("b.txt", "", "second"))
	sends := map[string]string{
		"length":  uploadHeader(w, fmt.Sprintf("Content-Length: %d", len(whole)), "X-Request-ID: length") + whole[:len(whole)-20],
		"chunked": uploadHeader(w, "Transfer-Encoding: chunked", "X-Request-ID: chunked") + fmt.Sprintf("%x\r\n", len(whole)) + whole[:2*mib],
	}
	for id, text := range sends {
		c := dial(t, p.URL)
		c.send(t, text)
		_ = c.Close()
		finished(t, p, id)
	}
	nothingStaged(t, p)
}

// Planted: admission without a limit; a slot that is never released.
func TestUpload_SaturatedIs503WithRetryAfter(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.MaxUploads = "1" })
	w := p.Create(t, "poll", "")
	body := form(file("slow.txt", "", "held open"))
	slow := dial(t, p.URL)
	slow.send(t, uploadHeader(w, fmt.Sprintf("Content-Length: %d", len(body)), "Expect: 100-continue"))
	if answer := slow.answer(t); answer.StatusCode != http.StatusContinue {
		t.Fatalf("expected 100 Continue, got %s", answer.Status)
	}

	r := post(t, p, w, file("a.txt", "", "a"))
	answered(t, r, http.StatusServiceUnavailable, map[string]any{"error": "the platform is busy; retry shortly", "code": "saturated"})
	if got := r.Header.Get("Retry-After"); got != "5" {
		t.Errorf("Retry-After is %q, want 5", got)
	}

	slow.send(t, body)
	accepted(t, slow.response(t))
	eventually(t, "room for another upload", func() bool { return post(t, p, w, file("b.txt", "", "b")).Status == http.StatusOK })
}

// On the base schema the platform works without staging.
func TestUpload_PollWithoutStagingIs422NoCallbackURL(t *testing.T) {
	t.Parallel()
	dsn := servertest.DatabaseBeforeStaging(t)
	p := servertest.Start(t, func(s *config.Settings) { s.DatabaseURL = dsn })
	wantNoCallbackURL(t, post(t, p, p.Create(t, "poll", ""), file("a", "", "a")))

	receiver := newReceiver(t)
	r := post(t, p, p.Create(t, "push", receiver.URL), file("a", "", "a"))
	if r.Status != http.StatusOK || receiver.only(t).body != form(file("a", "", "a")) {
		t.Errorf("push without staging: %d %s", r.Status, r.Body)
	}
}

func wantNoCallbackURL(t *testing.T, r *servertest.Response) {
	t.Helper()
	var answer map[string]any
	r.JSON(t, &answer)
	if detail, _ := answer["detail"].(string); detail == "" {
		t.Errorf("no detail in %s", r.Body)
	}
	answered(t, r, http.StatusUnprocessableEntity, map[string]any{
		"error": "workspace has no callback URL — chat upload requires push-mode + public URL", "code": "no_callback_url",
		"detail": answer["detail"],
	})
}
