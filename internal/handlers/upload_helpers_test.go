package handlers_test

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

const (
	// testTimeout bounds every wait of a test.
	testTimeout = 20 * time.Second

	boundary = "boundary-of-a-test"
	formType = "multipart/form-data; boundary=" + boundary

	mib = 1 << 20
)

// part is one part of a form. It is written by hand, so that a test decides every byte of its header.
type part struct {
	header string // lines, without the last line break
	body   string
}

// file is a part as a browser sends it; contentType "" sends none.
func file(name, contentType, content string) part {
	header := `Content-Disposition: form-data; name="files"; filename="` + name + `"`
	if contentType != "" {
		header += "\r\nContent-Type: " + contentType
	}
	return part{header, content}
}

// field returns a part that is not a file.
func field(name, value string) part {
	return part{`Content-Disposition: form-data; name="` + name + `"`, value}
}

func form(parts ...part) string {
	var b strings.Builder
	for _, p := range parts {
		fmt.Fprintf(&b, "--%s\r\n%s\r\n\r\n%s\r\n", boundary, p.header, p.body)
	}
	return b.String() + "--" + boundary + "--\r\n"
}

// uploadRequest is a POST of body to a workspace's uploads.
func uploadRequest(w servertest.Workspace, body io.Reader) servertest.Request {
	return servertest.Request{
		Method: http.MethodPost, Path: "/workspaces/" + w.ID + "/chat/uploads", Token: w.Token,
		Header: http.Header{"Content-Type": {formType}}, Body: body,
	}
}

// post uploads parts to a workspace, and returns the answer.
func post(t testing.TB, p *servertest.Platform, w servertest.Workspace, parts ...part) *servertest.Response {
	t.Helper()
	return p.Do(t, uploadRequest(w, strings.NewReader(form(parts...))))
}

// stagedFile is a file as the answer to an upload describes it.
type stagedFile struct {
	URI       string    `json:"uri"`
	Name      string    `json:"name"`
	MIMEType  string    `json:"mimeType"`
	Size      int64     `json:"size"`
	SHA256    string    `json:"sha256"`
	ExpiresAt time.Time `json:"expires_at"`
}

// ID is the file_id at the end of the URI.
func (f stagedFile) ID() string { return f.URI[strings.LastIndexByte(f.URI, '/')+1:] }

// accepted returns the files of an upload's answer, which must be a 200.
func accepted(t testing.TB, r *servertest.Response) []stagedFile {
	t.Helper()
	if r.Status != http.StatusOK {
		t.Fatalf("upload: %d %s", r.Status, r.Body)
	}
	var answer struct {
		Files []stagedFile `json:"files"`
	}
	r.JSON(t, &answer)
	return answer.Files
}

// stage uploads one file with that content, and returns it.
func stage(t testing.TB, p *servertest.Platform, w servertest.Workspace, content string) stagedFile {
	t.Helper()
	return accepted(t, post(t, p, w, file("notes.txt", "text/plain", content)))[0]
}

// pendingPath is the path of a staged file; suffix is "", "/content" or "/ack".
func pendingPath(w servertest.Workspace, f stagedFile, suffix string) string {
	return "/workspaces/" + w.ID + "/pending-uploads/" + f.ID() + suffix
}

// answered fails the test unless the answer has that status and exactly those fields.
func answered(t testing.TB, r *servertest.Response, status int, want map[string]any) {
	t.Helper()
	raw, err := json.Marshal(want) // for numbers of one type
	if err != nil {
		t.Fatal(err)
	}
	var wanted, got map[string]any
	if err := json.Unmarshal(raw, &wanted); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(r.Body, &got); err != nil {
		t.Fatalf("answer is not JSON: %d %q", r.Status, r.Body)
	}
	if r.Status != status || !reflect.DeepEqual(got, wanted) {
		t.Errorf("answer %d %s, want %d %s", r.Status, r.Body, status, raw)
	}
}

// count returns how many rows a table has.
func count(t testing.TB, p *servertest.Platform, table string) int {
	t.Helper()
	var n int
	if err := p.DB.QueryRowContext(t.Context(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// nothingStaged fails the test if an upload left a trace.
func nothingStaged(t testing.TB, p *servertest.Platform) {
	t.Helper()
	for _, table := range []string{"pending_uploads", "pending_upload_chunks", "activity_logs"} {
		if n := count(t, p, table); n != 0 {
			t.Errorf("%s has %d rows, want none", table, n)
		}
	}
	emptyFolder(t, p.Config.SpoolDir)
}

func emptyFolder(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("%s is left in the spool folder", e.Name())
	}
}

// exec changes the database without the platform.
func exec(t testing.TB, p *servertest.Platform, query string, args ...any) {
	t.Helper()
	if _, err := p.DB.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// eventually waits up to testTimeout until done.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(testTimeout)
	for !done() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within %v: %s", testTimeout, what)
		}
	}
}

// finished waits until the platform has finished a request: its log line is the last action.
func finished(t testing.TB, p *servertest.Platform, requestID string) {
	t.Helper()
	eventually(t, "end of request "+requestID, func() bool {
		return logLine(t, p, "request", requestID) != nil
	})
}

// logLine returns the line with that message of that request, or nil.
func logLine(t testing.TB, p *servertest.Platform, message, requestID string) map[string]any {
	t.Helper()
	for _, line := range p.Logs.Lines(t, message) {
		if line["request_id"] == requestID {
			return line
		}
	}
	return nil
}

// wire is a connection on which a test writes HTTP itself.
type wire struct {
	net.Conn
	in *bufio.Reader
}

// dial connects to the server at an http:// URL. Reads and writes fail after testTimeout.
func dial(t testing.TB, url string) *wire {
	t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	return &wire{conn, bufio.NewReader(conn)}
}

// send writes text as it is.
func (c *wire) send(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatalf("send: %v", err)
	}
}

// answer reads the header of the next answer; its body is read by the caller.
func (c *wire) answer(t testing.TB) *http.Response {
	t.Helper()
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatalf("read answer: %v", err)
	}
	return answer
}

// response reads the next answer to its end.
func (c *wire) response(t testing.TB) *servertest.Response {
	t.Helper()
	answer := c.answer(t)
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatalf("read answer: %v", err)
	}
	return &servertest.Response{Status: answer.StatusCode, Header: answer.Header, Body: body}
}

// uploadHeader is the header of an upload as a client sends it; more are further lines of it,
// the length or the encoding of the body among them.
func uploadHeader(w servertest.Workspace, more ...string) string {
	lines := append([]string{
		"POST /workspaces/" + w.ID + "/chat/uploads HTTP/1.1", "Host: platform", "Authorization: Bearer " + w.Token,
		"Content-Type: " + formType,
	}, more...)
	return strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// smallCaps make limits quick to reach.
func smallCaps(s *config.Settings) { s.MaxFileBytes, s.MaxRequestBytes = "1MiB", "2MiB" }

func sum(content string) string {
	digest := sha256.Sum256([]byte(content))
	return hex.EncodeToString(digest[:])
}

// pattern returns n bytes without a repeated sequence.
func pattern(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13 + i>>16*31)
	}
	return string(b)
}
