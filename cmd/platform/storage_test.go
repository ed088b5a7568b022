package main

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/objectstore/s3test"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// onStore returns the environment of a platform with an object store.
func onStore(dsn, url string) []string {
	return append(append(environmentOf(dsn), s3test.Environment...), "STORAGE_URL="+url)
}

// The platform is killed under uploads to S3. Files answered with 200 are there, byte for byte; an upload without an
// answer is there completely or not at all; no visible file has lost its bytes; orphans in the bucket are found and
// removed.
func TestKill_UnderUploadsToS3LeavesNothingThatReconcileDoesNotFind(t *testing.T) {
	t.Parallel()
	dsn := pgtest.New(t)
	database := onStore(dsn, s3test.BucketURL(t))
	killUnderUploads(t, kills, dsn, database)

	db := pgtest.Open(t, dsn)
	mustExec(t, db, `UPDATE upload_objects SET created_at = created_at - interval '8 hours', garbage_at = garbage_at - interval '8 hours'`)
	var left int
	if err := db.QueryRow(`SELECT count(*) FROM upload_objects WHERE file_id IS NULL`).Scan(&left); err != nil {
		t.Fatal(err)
	}
	reconcile := func(args ...string) string {
		t.Helper()
		r := execute(t, newFolder(t), database, append([]string{"storage", "reconcile"}, args...)...)
		if r.code != 0 || !strings.Contains(r.stdout, "damaged files: bytes missing 0, wrong size 0") {
			t.Errorf("reconcile %q: exit code %d, %s%s", args, r.code, r.stdout, r.stderr)
		}
		return r.stdout
	}
	without := fmt.Sprintf("objects without a file %d,", left)
	for _, args := range [][]string{nil, {"--fix"}} {
		if printed := reconcile(args...); !strings.Contains(printed, without) {
			t.Errorf("reconcile %q: %s, want %q", args, printed, without)
		}
	}
	printed := reconcile()
	counts := regexp.MustCompile(`objects: (\d+), files with objects: (\d+)\n`).FindStringSubmatch(printed)
	if left == 0 || counts == nil || counts[1] != counts[2] || !strings.Contains(printed, "unknown to the database 0 (0 B), objects without a file 0,") {
		t.Errorf("%d objects were left; after they were removed: %s", left, printed)
	}
	t.Logf("%d kills left %d objects without a file, removed; then: %s", kills, left, printed)
}

func mustExec(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.Exec(statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// 1,000 files are moved from PostgreSQL to S3, interrupted twice by a signal and once by a kill. Then all files are in
// S3, verified, and clients can download them.
func TestStorageMigrate_InterruptedThreeTimesMovesAll(t *testing.T) {
	t.Parallel()
	const all = 1000
	dsn := pgtest.New(t)
	dir := newFolder(t)
	p := serve(t, dir, append(environmentOf(dsn), "RATE_LIMIT=0")...)
	w := p.create(t, servertest.AdminToken, "poll", "")
	source := rand.NewChaCha8([32]byte{1})
	var want []stagedFile
	for len(want) < all {
		var batch []file
		for i := range 50 {
			content := make([]byte, 70_000+100*(len(want)+i))
			_, _ = source.Read(content) // never fails
			batch = append(batch, file{fmt.Sprintf("file-%d.bin", len(want)+i), content})
		}
		contentType, body := form(batch...)
		status, staged, err := p.post(http.DefaultClient, w, contentType, bytes.NewReader(body))
		if err != nil || status != http.StatusOK {
			t.Fatal(status, err)
		}
		for i, f := range staged {
			if sum := sha256.Sum256(batch[i].content); f.SHA256 != hex.EncodeToString(sum[:]) {
				t.Fatalf("staged %+v", f)
			}
		}
		want = append(want, staged...)
	}
	p.stop(t)

	db := pgtest.Open(t, dsn)
	moved := func() (n int) {
		if err := db.QueryRow(`SELECT count(*) FROM pending_uploads WHERE object_key IS NOT NULL`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	database := onStore(dsn, s3test.BucketURL(t))
	if r := execute(t, dir, database, "storage", "migrate", "--dry-run"); r.code != 0 || !strings.Contains(r.stdout, fmt.Sprintf("%d files, ", all)) || moved() != 0 {
		t.Errorf("dry run: %d %s%s", r.code, r.stdout, r.stderr)
	}
	var steps []int
	for _, end := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL, syscall.SIGTERM} {
		before := moved()
		m := start(t, dir, database, "storage", "migrate")
		eventually(t, testTimeout, "a part is moved", func() bool { return moved() >= before+20 })
		m.signal(t, end)
		code := m.exit(t)
		if reported := strings.Contains(m.stdout.String(), "interrupted; run the command again"); code == 0 || reported != (end != syscall.SIGKILL) {
			t.Errorf("interrupted by %s: exit code %d, %s", end, code, m.stdout)
		}
		steps = append(steps, moved())
		if moved() == all {
			t.Fatalf("interrupted too late, at %v", steps)
		}
	}
	r := execute(t, dir, database, "storage", "migrate")
	if r.code != 0 || moved() != all || !strings.Contains(r.stdout, fmt.Sprintf("moved %d files", all-steps[2])) || !strings.Contains(r.stdout, "failed 0") {
		t.Errorf("the rest: exit code %d, moved %d, %s%s", r.code, moved(), r.stdout, r.stderr)
	}
	if r := execute(t, dir, database, "storage", "reconcile"); r.code != 0 || !strings.Contains(r.stdout, fmt.Sprintf("files with objects: %d\n", all)) {
		t.Errorf("reconcile: %d %s%s", r.code, r.stdout, r.stderr)
	}
	p = serve(t, dir, append(database, "RATE_LIMIT=0")...)
	for _, f := range want {
		if err := p.download(w, f); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("moved %d files; interrupted at %v; the last run: %s", all, steps, r.stdout)
}

func TestStorage_ReportsWhatIsWrongWithTheStore(t *testing.T) {
	t.Parallel()
	dsn := pgtest.New(t)
	for _, c := range []struct{ url, want string }{
		{"s3://bucket?endpoint=http://user:hunter2@127.0.0.1:1", "STORAGE_URL has the parameter"},
		{"s3://key:hunter2@bucket", "credentials come from the environment"},
		{"ftp://hunter2", "is not a supported store"},
		{s3test.Shared(t).BucketURL(t, "http://127.0.0.1:1"), "the store of STORAGE_URL cannot be used: pendinguploads: open object store 1: the store cannot be reached"},
		{"s3://there-is-no-such-bucket?endpoint=" + s3test.Shared(t).URL, "there is no bucket there-is-no-such-bucket; create it"},
		{"gs://bucket", "use its S3 interface"},
	} {
		r := execute(t, newFolder(t), onStore(dsn, c.url), "serve")
		if r.code != 1 || !strings.Contains(r.stderr, c.want) || strings.Contains(r.stderr, "hunter2") {
			t.Errorf("%s: exit code %d, %s", c.url, r.code, r.stderr)
		}
	}
	folder := "file://" + newFolder(t)
	mustExec(t, pgtest.Open(t, dsn), `WITH store AS (INSERT INTO upload_stores (url) VALUES ('`+folder+`') RETURNING id) `+
		`INSERT INTO upload_objects (object_key, store_id, size_bytes, file_id) SELECT gen_random_uuid(), id, 1, gen_random_uuid() FROM store`)
	for _, args := range [][]string{{"serve"}, {"storage", "migrate"}} {
		r := execute(t, newFolder(t), onStore(dsn, folder), args...)
		if r.code != 1 || !strings.Contains(r.stderr, "the store of STORAGE_URL contains none of the files that were written to it; check that it is mounted") {
			t.Errorf("%q on a folder that is not mounted: exit code %d, %s", args, r.code, r.stderr)
		}
	}
	old := emptyDatabase(t)
	migrate(t, old, "up")
	migrate(t, old, "down", strconv.Itoa(stepsAboveBase))
	for _, args := range [][]string{{"serve"}, {"storage", "reconcile"}, {"storage", "migrate"}} {
		r := execute(t, newFolder(t), append(old, "STORAGE_URL=file://"+newFolder(t)), args...)
		if r.code != 1 || !strings.Contains(r.stderr, "run 'platform migrate up'") {
			t.Errorf("%q on an old schema: exit code %d, %s", args, r.code, r.stderr)
		}
	}
}
