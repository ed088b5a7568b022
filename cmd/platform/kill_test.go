package main

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

const (
	kills     = 50
	uploaders = 4
	most      = 5       // files in one upload
	smallest  = 1 << 10 // bytes of a file
	largest   = 3 << 20
)

// The platform is killed at 50 random moments under uploads. Files answered with 200 must be there; an upload without
// an answer must be there completely or not at all.
func TestKill_UnderUploadsKeepsEvery200AndAnnouncesNothingElse(t *testing.T) {
	t.Parallel()
	dsn := pgtest.New(t)
	killUnderUploads(t, kills, dsn, environmentOf(dsn))
}

// killUnderUploads kills a platform several times under uploads, and checks the files.
func killUnderUploads(t *testing.T, kills int, dsn string, database []string) {
	t.Helper()
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)

	dir, spool := newFolder(t), newFolder(t)
	database = append(slices.Clip(database), "SPOOL_DIR="+spool)
	db := pgtest.Open(t, dsn)
	p := serve(t, dir, database...)
	l := ledger{answer: make(chan struct{}, 1)}
	for range 2 {
		l.workspaces = append(l.workspaces, p.create(t, servertest.AdminToken, "poll", ""))
	}
	for round := range kills {
		var g errgroup.Group
		for u := range uploaders {
			w, source := l.workspaces[u%len(l.workspaces)], rng.Uint64()
			prefix := fmt.Sprintf("kill%d-uploader%d", round, u)
			g.Go(func() error { return l.upload(p, w, prefix, source) })
		}
		// A random moment, and every other time one shortly after an answer of 200.
		moment := time.Duration(20+rng.IntN(380)) * time.Millisecond
		if round%2 == 1 {
			moment = time.Duration(rng.IntN(3000)) * time.Microsecond
			l.awaitAnswer(t)
		}
		<-time.After(moment)
		p.kill(t)
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if round == kills-1 {
			awaitNoSession(t, db) // a statement of the killed platform may still be running
		}
		p = serve(t, dir, database...)
	}
	l.check(t, p, kills)
	checkTables(t, db)
	checkSpool(t, spool)
}

// ledger records what the uploaders sent and which answers they got.
type ledger struct {
	workspaces []servertest.Workspace
	answer     chan struct{} // has a value if there was an answer since the last receive

	mu      sync.Mutex
	uploads []*sentUpload
}

// sentUpload is an upload that the platform may have received, completely or in part.
type sentUpload struct {
	workspace string
	files     []stagedFile // as sent; with a URI after a 200
	answered  bool         // with 200, and the whole answer was read
}

// upload sends one upload after the other until the platform is killed.
func (l *ledger) upload(p *process, w servertest.Workspace, prefix string, seed uint64) error {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: testTimeout}
	rng := rand.New(rand.NewPCG(seed, 1))
	var key [32]byte
	for i := range key {
		key[i] = byte(rng.Uint32())
	}
	bytesOf := rand.NewChaCha8(key)
	for n := 0; ; n++ {
		sent := &sentUpload{workspace: w.ID}
		files := make([]file, 1+rng.IntN(most))
		for i := range files {
			content := make([]byte, int(smallest*math.Pow(largest/smallest, rng.Float64())))
			_, _ = bytesOf.Read(content) // never fails
			files[i] = file{fmt.Sprintf("%s-upload%d-file%d.bin", prefix, n, i), content}
			sum := sha256.Sum256(content)
			sent.files = append(sent.files, stagedFile{Name: files[i].name, Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])})
		}
		l.mu.Lock()
		l.uploads = append(l.uploads, sent)
		l.mu.Unlock()

		contentType, body := form(files...)
		status, staged, err := p.post(client, w, contentType, bytes.NewReader(body))
		if err != nil {
			return nil // killed; check determines the outcome of the upload
		}
		if status != http.StatusOK || len(staged) != len(sent.files) {
			return fmt.Errorf("upload to a living platform: %d, %d files", status, len(staged))
		}
		for i, f := range staged {
			sent.files[i].URI = f.URI
			if f != sent.files[i] {
				return fmt.Errorf("staged %+v, sent %+v", f, sent.files[i])
			}
		}
		sent.answered = true
		select {
		case l.answer <- struct{}{}:
		default:
		}
	}
}

// awaitAnswer waits until another upload is answered.
func (l *ledger) awaitAnswer(t *testing.T) {
	t.Helper()
	select {
	case <-l.answer: // discard an old one
	default:
	}
	select {
	case <-l.answer:
	case <-time.After(testTimeout):
		t.Fatalf("no upload was answered within %s", testTimeout)
	}
}

// check compares what was sent and answered with what a poller receives.
func (l *ledger) check(t *testing.T, p *process, kills int) {
	t.Helper()
	announced := map[string]map[string][]stagedFile{} // by workspace and name, which is never used twice
	var g errgroup.Group
	g.SetLimit(uploaders)
	for _, w := range l.workspaces {
		announced[w.ID] = map[string][]stagedFile{}
		for _, row := range p.inbox(t, w, 500) {
			f := row.Body
			announced[w.ID][f.Name] = append(announced[w.ID][f.Name], f)
			g.Go(func() error { return p.download(w, f) })
		}
	}
	if err := g.Wait(); err != nil {
		t.Errorf("an announced file is not there as announced: %v", err)
	}

	var answered, answeredFiles, lost, lateWhole, torn, wrong int
	for _, u := range l.uploads {
		var there int
		for _, f := range u.files {
			rows := announced[u.workspace][f.Name]
			delete(announced[u.workspace], f.Name)
			for i := range rows {
				if f.URI == "" {
					rows[i].URI = "" // there was no answer with the URI
				}
			}
			if slices.Equal(rows, []stagedFile{f}) {
				there++
			} else if len(rows) > 0 || u.answered {
				if wrong++; wrong <= 5 { // enough to recognize the fault
					t.Errorf("sent %+v (answered: %t), announced %+v", f, u.answered, rows)
				}
			}
		}
		switch {
		case u.answered:
			answered++
			answeredFiles += len(u.files)
			lost += len(u.files) - there
		case there == len(u.files):
			lateWhole++
		case there > 0:
			torn++
		}
	}
	unannounced := 0
	for workspace, files := range announced {
		for name := range files {
			t.Errorf("workspace %s has %s, which was never sent", workspace, name)
			unannounced++
		}
	}
	t.Logf("kills %d; uploads sent %d, answered with 200: %d of %d files; lost files %d, files never sent %d, unanswered uploads stored completely %d, in part %d",
		kills, len(l.uploads), answered, answeredFiles, lost, unannounced, lateWhole, torn)
	if lost > 0 || torn > 0 || wrong > 0 {
		t.Errorf("%d files lost, %d uploads there in part, %d files not announced as sent", lost, torn, wrong)
	}
	if cut := len(l.uploads) - answered; answered < kills/2 || cut < kills {
		t.Errorf("%d uploads answered and %d cut: the kills did not come under uploads", answered, cut)
	}
}

// checkTables checks that every file has an inbox row and vice versa, and that all bytes belong to a file.
func checkTables(t *testing.T, db *sql.DB) {
	t.Helper()
	for _, c := range []struct{ what, query string }{
		{"files without exactly one inbox row", `SELECT count(*) FROM pending_uploads f LEFT JOIN (SELECT workspace_id, request_body->>'file_id' AS file_id, count(*) AS n
			FROM activity_logs WHERE method = 'chat_upload_receive' GROUP BY 1, 2) a ON a.workspace_id = f.workspace_id AND a.file_id = f.file_id::text
			WHERE a.n IS DISTINCT FROM 1`},
		{"inbox rows more than files", `SELECT (SELECT count(*) FROM activity_logs WHERE method = 'chat_upload_receive') - (SELECT count(*) FROM pending_uploads)`},
		{"files of another length than their pieces", `SELECT count(*) FROM pending_uploads f WHERE object_key IS NULL AND size_bytes <> octet_length(content) +
			coalesce((SELECT sum(octet_length(data)) FROM pending_upload_chunks c WHERE c.file_id = f.file_id), 0)`},
		{"pieces without file", `SELECT count(*) FROM pending_upload_chunks c WHERE NOT EXISTS (SELECT FROM pending_uploads f WHERE f.file_id = c.file_id)`},
	} {
		var n int
		if err := db.QueryRow(c.query).Scan(&n); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		if n != 0 {
			t.Errorf("%s: %d", c.what, n)
		}
	}
}

// checkSpool checks that no bytes of killed uploads are left on the disk. An empty file may be: a temporary file has a
// name until it is unlinked, before anything is written.
func checkSpool(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Size() > 0 || !strings.HasPrefix(e.Name(), "upload-") {
			t.Errorf("left in the spool folder: %s (%v)", e.Name(), err)
		}
	}
}

// awaitNoSession waits until the platform has no database session.
func awaitNoSession(t *testing.T, db *sql.DB) {
	t.Helper()
	eventually(t, testTimeout, "the killed platform's sessions have ended", func() bool {
		var n int
		err := db.QueryRow(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'molecule-platform'`).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
}
