package handlers_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

// oddFiles are files as clients send them, and the names and types they must get.
var oddFiles = []struct {
	part       part
	name, mime string
}{
	{file("report.pdf", "application/pdf", "%PDF-1.7"), "report.pdf", "application/pdf"},
	{file("dir/sub/ünï code.txt", "text/plain; charset=utf-8", "odd"), "_n__code.txt", "text/plain"},
	{file("..", "", "dots"), "file", "application/octet-stream"},
	{file("trailing/", "Image/PNG", "slash"), "file", "image/png"},
	{file("", "", "no name"), "file", "application/octet-stream"},
	{part{`Content-Disposition: form-data; name="files"`, "no filename"}, "file", "application/octet-stream"},
	{file("empty.txt", "", ""), "empty.txt", "text/plain"},
	{file(`a\"b<c>.png`, "nonsense", "quoted"), "a_b_c_.png", "image/png"},
	{part{"content-type: text/csv\r\ncontent-disposition: form-data; filename*=UTF-8''na%C3%AFve.csv; name=files", "1,2"}, "na_ve.csv", "text/csv"},
	{file(strings.Repeat("a", 120)+".tar.gz", "", "long"), strings.Repeat("a", 97) + ".gz", "application/gzip"},
	{file("same.txt", "", "first"), "same.txt", "text/plain"},
	{file("same.txt", "", "second"), "same.txt", "text/plain"},
	{file("crlf.txt", "text/plain", "a\r\n--"+boundary[:5]+"\r\n\r\n"), "crlf.txt", "text/plain"},
}

// Planted: files appended in reverse, name not sanitized, one inbox row for all.
func TestUploadPoll_AnswersWithEveryFileInOrder(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	parts := []part{field("message", "not a file")}
	for _, f := range oddFiles {
		parts = append(parts, f.part)
	}
	r := post(t, p, w, parts...)
	files := accepted(t, r)
	if len(files) != len(oddFiles) {
		t.Fatalf("%d files in the answer, want %d", len(files), len(oddFiles))
	}

	var wire struct {
		Files []map[string]any `json:"files"`
	}
	r.JSON(t, &wire)
	for i, f := range files {
		want := map[string]any{
			"uri": "platform-pending:" + w.ID + "/" + f.ID(), "name": oddFiles[i].name, "mimeType": oddFiles[i].mime,
			"size": float64(len(oddFiles[i].part.body)), "sha256": sum(oddFiles[i].part.body), "expires_at": wire.Files[i]["expires_at"],
		}
		if !reflect.DeepEqual(wire.Files[i], want) {
			t.Errorf("file %d is %v, want %v", i, wire.Files[i], want)
		}
		var left float64
		err := p.DB.QueryRow(`SELECT extract(epoch FROM expires_at - created_at) FROM pending_uploads
			WHERE file_id = $1 AND workspace_id = $2 AND expires_at = $3`, f.ID(), w.ID, f.ExpiresAt).Scan(&left)
		if day := (24 * time.Hour).Seconds(); err != nil || left < day-60 || left > day {
			t.Errorf("file %d expires after %v s (%v), want a day", i, left, err)
		}
		content := p.Do(t, servertest.Request{Path: pendingPath(w, f, "/content"), Token: w.Token})
		if string(content.Body) != oddFiles[i].part.body || content.Header.Get("Content-Type") != oddFiles[i].mime {
			t.Errorf("file %d is delivered as %q %q, want %q", i, content.Header.Get("Content-Type"), content.Body, oddFiles[i].part.body)
		}
	}
	wantAnnounced(t, p, w, files)
}

// wantAnnounced checks that the inbox of w has one row for each of files, in their order, and
// nothing else.
func wantAnnounced(t *testing.T, p *servertest.Platform, w servertest.Workspace, files []stagedFile) {
	t.Helper()
	var rows []map[string]any
	p.Do(t, servertest.Request{Path: "/workspaces/" + w.ID + "/activity?order=asc", Token: w.Token}).JSON(t, &rows)
	if len(rows) != len(files) {
		t.Fatalf("%d inbox rows, want %d", len(rows), len(files))
	}
	for i, f := range files {
		row := rows[i]
		want := map[string]any{
			"id": row["id"], "seq": float64(i + 1), "created_at": row["created_at"], "workspace_id": w.ID,
			"activity_type": "a2a_receive", "method": "chat_upload_receive", "source_id": nil, "target_id": w.ID,
			"status": "ok", "summary": "chat_upload_receive: " + f.Name, "response_body": nil, "duration_ms": nil, "error_detail": nil,
			"request_body": map[string]any{
				"file_id": f.ID(), "name": f.Name, "mimeType": f.MIMEType, "size": float64(f.Size), "uri": f.URI, "sha256": f.SHA256,
			},
		}
		if !reflect.DeepEqual(row, want) {
			got, _ := json.Marshal(row)
			t.Errorf("inbox row %d is %s, want %v", i, got, want)
		}
	}
}

func TestUploadPoll_CanvasUploadsWithTheAdminToken(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	canvas := w
	canvas.Token = servertest.AdminToken
	files := accepted(t, post(t, p, canvas, file("a.txt", "", "from the canvas")))
	wantAnnounced(t, p, w, files)
}

// Planted: >= instead of > in the per-file and in the request cap.
func TestUploadPoll_FilesOfExactlyTheCapsPass(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, smallCaps)
	w := p.Create(t, "poll", "")
	content := pattern(mib)
	files := accepted(t, post(t, p, w, file("a.bin", "", content), file("b.bin", "", content)))
	for _, f := range files {
		if f.Size != mib || f.SHA256 != sum(content) {
			t.Errorf("%+v, want %d bytes with SHA-256 %s", f, mib, sum(content))
		}
	}
	wantAnnounced(t, p, w, files)
	emptyFolder(t, p.Config.SpoolDir)
}

func TestUploadPoll_AsManyFilesAsAllowedPass(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	parts := make([]part, p.Config.MaxFiles, p.Config.MaxFiles+64)
	for i := range parts {
		parts[i] = file("f.txt", "", strings.Repeat("x", i))
	}
	for range 64 {
		parts = append(parts, field("other", "ignored"))
	}
	wantAnnounced(t, p, w, accepted(t, post(t, p, w, parts...)))
}

func TestLimits_ArePublic(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, smallCaps)
	r := p.Do(t, servertest.Request{Path: "/uploads/limits"})
	answered(t, r, http.StatusOK, map[string]any{
		"per_file_bytes": mib, "per_request_bytes": 2 * mib, "max_files": 64, "expires_after_seconds": 86400,
	})
}

// endless yields a pattern that repeats after a length no chunk divides.
type endless struct {
	block string
	at    int
}

func (e *endless) Read(b []byte) (int, error) {
	n := copy(b, e.block[e.at:])
	e.at = (e.at + n) % len(e.block)
	return n, nil
}

// The default caps, and a client without a Content-Length. Neither the test nor the platform holds the file in
// memory.
func TestUploadPoll_FileOfTheDefaultCapStreamsThrough(t *testing.T) {
	t.Parallel()
	const size = 100 * mib
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	whole := form(file("large.bin", "", "|"))
	head, tail, _ := strings.Cut(whole, "|")
	digest := sha256.New()
	content := io.TeeReader(io.LimitReader(&endless{block: pattern(mib + 4099)}, size), digest)
	files := accepted(t, p.Do(t, uploadRequest(w, io.MultiReader(strings.NewReader(head), content, strings.NewReader(tail)))))
	want := hex.EncodeToString(digest.Sum(nil))
	if files[0].Size != size || files[0].SHA256 != want {
		t.Fatalf("staged as %+v, want %d bytes with SHA-256 %s", files[0], size, want)
	}

	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.URL+pendingPath(w, files[0], "/content"), nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+w.Token)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	digest.Reset()
	if n, err := io.Copy(digest, answer.Body); err != nil || n != size || hex.EncodeToString(digest.Sum(nil)) != want {
		t.Errorf("delivered %d bytes (%v) with SHA-256 %x, want %d with %s", n, err, digest.Sum(nil), size, want)
	}
}
