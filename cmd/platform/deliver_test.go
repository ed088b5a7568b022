package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/server"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// The platform is started in an empty folder without settings, like a newcomer's.
func TestServe_FromAnEmptyFolderDeliversFilesAndKeepsThem(t *testing.T) {
	t.Parallel()
	dir := newFolder(t)
	p := serve(t, dir)
	admin := adminToken(t, dir)
	w := p.create(t, admin, "poll", "")

	long := make([]byte, 2<<20+12345)
	rand.Read(long)
	sent := []file{
		{"Résumé 2026 (final).pdf", []byte("twenty-seven bytes of text\n")},
		{"../../etc/passwd", long},
		{"folder/", nil},
	}
	names := []string{"R_sum__2026__final_.pdf", "passwd", "file"}
	files := p.mustUpload(t, w, sent...)
	checkStaged(t, w, files, sent, names)
	checkInbox(t, p, w, files)
	for i, f := range files {
		r := p.fetch(t, w, f.id(), nil)
		if r.Status != http.StatusOK || !bytes.Equal(r.Body, sent[i].content) {
			t.Errorf("%s: %d, %d bytes that are not those sent", f.Name, r.Status, len(r.Body))
		}
	}
	// Across the boundary between two chunks.
	r := p.fetch(t, w, files[1].id(), http.Header{"Range": {"bytes=1048570-1048599"}})
	if r.Status != http.StatusPartialContent || !bytes.Equal(r.Body, long[1048570:1048600]) {
		t.Errorf("range: %d, %d bytes", r.Status, len(r.Body))
	}
	for _, which := range []string{"first", "second"} {
		r := p.call(t, servertest.Request{Method: http.MethodPost, Path: pending(w.ID) + "/" + files[0].id() + "/ack", Token: w.Token})
		if r.Status != http.StatusOK || string(bytes.TrimSpace(r.Body)) != `{"acked":true}` {
			t.Errorf("%s ack: %d %s", which, r.Status, r.Body)
		}
	}
	checkList(t, p, w, "unacked", files[1:])
	checkList(t, p, w, "acked", files[:1])

	postgres := p.postgres(t)
	p.stop(t)
	if !gone(postgres) {
		t.Fatal("PostgreSQL outlived the platform")
	}

	p = serve(t, dir)
	if second := adminToken(t, dir); second != admin {
		t.Error("the second start has another admin token")
	}
	checkList(t, p, w, "unacked", files[1:])
	if r := p.fetch(t, w, files[1].id(), nil); !bytes.Equal(r.Body, long) {
		t.Errorf("after a restart: %d, %d bytes that are not those sent", r.Status, len(r.Body))
	}
	p.stop(t)

	status := execute(t, dir, nil, "migrate", "status")
	if status.code != 0 || !strings.Contains(status.stdout, "up to date") {
		t.Errorf("migrate status on the private PostgreSQL: %+v", status)
	}
	if leftover := filepath.Join(dir, "data", "postgres", "postmaster.pid"); exists(leftover) {
		t.Errorf("%s: migrate status left its PostgreSQL running", leftover)
	}
}

// adminToken returns the token that the first start generated, and checks that it is secret.
func adminToken(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "data", server.AdminTokenFile)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("admin token has mode %o", info.Mode().Perm())
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(string(content))
	if len(token) < 43 { // 256 bits in base64
		t.Errorf("admin token of %d characters", len(token))
	}
	return token
}

func checkStaged(t *testing.T, w servertest.Workspace, files []stagedFile, sent []file, names []string) {
	t.Helper()
	if len(files) != len(sent) {
		t.Fatalf("%d files staged: %+v", len(files), files)
	}
	for i, f := range files {
		sum := sha256.Sum256(sent[i].content)
		want := stagedFile{URI: "platform-pending:" + w.ID + "/" + f.id(), Name: names[i], Size: int64(len(sent[i].content)), SHA256: hex.EncodeToString(sum[:])}
		if f != want {
			t.Errorf("staged %+v, want %+v", f, want)
		}
	}
}

// checkInbox reads the inbox like a poller, one row at a time.
func checkInbox(t *testing.T, p *process, w servertest.Workspace, files []stagedFile) {
	t.Helper()
	var announced []stagedFile
	for _, row := range p.inbox(t, w, 1) {
		if row.Method != "chat_upload_receive" || row.SourceID != nil {
			t.Errorf("row: %+v", row)
		}
		announced = append(announced, row.Body)
	}
	if !slices.Equal(announced, files) {
		t.Errorf("announced %+v, want %+v", announced, files)
	}
}

func checkList(t *testing.T, p *process, w servertest.Workspace, state string, want []stagedFile) {
	t.Helper()
	var listed []stagedFile
	p.get(t, w.Token, pending(w.ID)+"?state="+state, &listed)
	if !slices.Equal(listed, want) {
		t.Errorf("%s: %+v, want %+v", state, listed, want)
	}
}

// inboxRow has the fields of an inbox row that a poller of files needs.
type inboxRow struct {
	ID       string     `json:"id"`
	Method   string     `json:"method"`
	SourceID *string    `json:"source_id"`
	Body     stagedFile `json:"request_body"`
}

// inbox follows the cursor from the oldest row to the newest.
func (p *process) inbox(t *testing.T, w servertest.Workspace, limit int) []inboxRow {
	t.Helper()
	var rows []inboxRow
	for where := "order=asc"; ; {
		var page []inboxRow
		p.get(t, w.Token, "/workspaces/"+w.ID+"/activity?type=a2a_receive&limit="+strconv.Itoa(limit)+"&"+where, &page)
		if len(page) == 0 {
			return rows
		}
		rows = append(rows, page...)
		where = "since_id=" + page[len(page)-1].ID
	}
}

func TestKill_OfThePlatformEndsItsPostgreSQLAndLosesNothing(t *testing.T) {
	t.Parallel()
	dir := newFolder(t)
	p := serve(t, dir)
	w := p.create(t, adminToken(t, dir), "poll", "")
	content := []byte("survives")
	f := p.mustUpload(t, w, file{"note.txt", content})[0]

	postgres := p.postgres(t)
	p.kill(t)
	// PostgreSQL gets SIGINT, after 5 seconds SIGQUIT, and after 10 SIGKILL.
	eventually(t, 15*time.Second, "PostgreSQL is gone", func() bool { return gone(postgres) })

	p = serve(t, dir)
	if r := p.fetch(t, w, f.id(), nil); r.Status != http.StatusOK || !bytes.Equal(r.Body, content) {
		t.Errorf("after a kill: %d %q", r.Status, r.Body)
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
