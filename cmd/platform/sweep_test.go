package main

import (
	"bytes"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// sweep runs the sweep command, which must succeed.
func sweep(t *testing.T, env []string, args ...string) (printed string) {
	t.Helper()
	r := execute(t, newFolder(t), env, append([]string{"sweep"}, args...)...)
	if r.code != 0 || r.stderr != "" {
		t.Fatalf("sweep %q: exit code %d, stderr %q", args, r.code, r.stderr)
	}
	return r.stdout
}

// Planted faults: --dry-run ignored; the retention of the command's environment ignored.
func TestSweep_ReportsAndDeletesWhatHasExpired(t *testing.T) {
	t.Parallel()
	dsn := pgtest.New(t)
	env, db := environmentOf(dsn), pgtest.Open(t, dsn)
	p := serveOn(t, env, "SWEEP_INTERVAL=8760h")
	eventually(t, testTimeout, "the sweep at the start has ended", func() bool {
		return bytes.Contains(p.call(t, servertest.Request{Path: "/metrics"}).Body, []byte("\nmolecule_sweep_duration_seconds_count 1\n"))
	})
	w := p.create(t, servertest.AdminToken, "poll", "")
	files := p.mustUpload(t, w, file{"acked.txt", []byte("hello")}, file{"expired.txt", make([]byte, 2<<20)}, file{"staged.txt", nil})
	if r := p.call(t, servertest.Request{Method: http.MethodPost, Path: pending(w.ID) + "/" + files[0].id() + "/ack", Token: w.Token}); r.Status != http.StatusOK {
		t.Fatalf("ack: %d %s", r.Status, r.Body)
	}
	if _, err := db.Exec(`UPDATE pending_uploads SET expires_at = now() WHERE file_id = $1`, files[1].id()); err != nil {
		t.Fatal(err)
	}
	readable := func(want ...int) {
		t.Helper()
		for i, status := range want {
			if r := p.fetch(t, w, files[i].id(), nil); r.Status != status {
				t.Errorf("%s: %d, want %d", files[i].Name, r.Status, status)
			}
		}
	}
	atOnce := append(slices.Clone(env), "ACK_RETENTION=0s")
	wantPrinted(t, sweep(t, env, "--dry-run"), "would delete files: 0 acknowledged (0 B), 1 expired (2.0 MiB); inbox rows: 0; identities: 0\n")
	wantPrinted(t, sweep(t, atOnce, "--dry-run"), "would delete files: 1 acknowledged (5 B), 1 expired (2.0 MiB); inbox rows: 0; identities: 0\n")
	readable(http.StatusOK, http.StatusNotFound, http.StatusOK)
	wantPrinted(t, sweep(t, env), "deleted files: 0 acknowledged (0 B), 1 expired (2.0 MiB); inbox rows: 0; identities: 0\n")
	readable(http.StatusOK, http.StatusNotFound, http.StatusOK)
	wantPrinted(t, sweep(t, atOnce, "--once"), "deleted files: 1 acknowledged (5 B), 0 expired (0 B); inbox rows: 0; identities: 0\n")
	readable(http.StatusNotFound, http.StatusNotFound, http.StatusOK)
	wantPrinted(t, sweep(t, atOnce, "--once"), "deleted files: 0 acknowledged (0 B), 0 expired (0 B); inbox rows: 0; identities: 0\n")
	wantPrinted(t, sweep(t, append(slices.Clone(env), "ACTIVITY_RETENTION=0s"), "--dry-run"),
		"would delete files: 0 acknowledged (0 B), 0 expired (0 B); inbox rows: 0; identities: 0\n") // unread rows are kept
	if _, err := db.Exec(`INSERT INTO workspaces (registered_anonymously, created_at) VALUES (true, now() - interval '8 days')`); err != nil {
		t.Fatal(err)
	}
	wantPrinted(t, sweep(t, env, "--dry-run"), "would delete files: 0 acknowledged (0 B), 0 expired (0 B); inbox rows: 0; identities: 1\n")
	wantPrinted(t, sweep(t, env), "deleted files: 0 acknowledged (0 B), 0 expired (0 B); inbox rows: 0; identities: 1\n")
	p.stop(t)
}

func TestSweep_ReportsRefusalsInOneSentence(t *testing.T) {
	t.Parallel()
	old := newDatabase(t)
	migrate(t, old, "down", strconv.Itoa(stepsAboveBase))
	for name, c := range map[string]struct {
		env  []string
		want []string
	}{
		"a schema that is too old": {old, []string{"platform: the database is not up to date; run 'platform migrate up' first"}},
		"a bad retention":          {append(newDatabase(t), "ACK_RETENTION=soon"), []string{"platform: the configuration is invalid", "ACK_RETENTION is \"soon\"; write …"}},
	} {
		for _, args := range [][]string{{"sweep"}, {"sweep", "--dry-run"}} {
			r := execute(t, newFolder(t), c.env, args...)
			t.Log(name, strings.Join(args, " "))
			checkRefusal(t, r, c.want)
		}
	}
}
