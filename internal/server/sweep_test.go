package server_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// await looks again and again until done.
func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	late := time.After(testTimeout)
	for !done() {
		select {
		case <-again.C:
		case <-late:
			t.Fatalf("not within %s: %s", testTimeout, what)
		}
	}
}

// Planted: the sweeper not started; the retention of acknowledged files for that of rows.
func TestServer_SweepsWhatWasAcknowledged(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.AckRetention, s.SweepInterval = "0s", "1s" })
	w := p.Create(t, "poll", "")
	files := stage(t, p, w, "a.txt", "b.txt")
	acked, kept := files[0], files[1]
	path := "/workspaces/" + w.ID + "/pending-uploads/" + acked.ID()
	must(t, p, http.StatusOK, "POST", path+"/ack", w.Token, "", nil)
	const gone = "pending upload not found, expired, or already acked"
	await(t, "the file is swept", func() bool {
		r := call(t, p, "GET", path+"/content", w.Token, "")
		if r.Status == http.StatusOK {
			return false
		}
		isError(t, r, http.StatusNotFound, "pending_upload_not_found", gone)
		return true
	})
	isError(t, call(t, p, "GET", path, w.Token, ""), http.StatusNotFound, "pending_upload_not_found", gone)
	isError(t, call(t, p, "POST", path+"/ack", w.Token, ""), http.StatusNotFound, "pending_upload_not_found", gone)
	must(t, p, http.StatusOK, "GET", "/workspaces/"+w.ID+"/pending-uploads/"+kept.ID(), w.Token, "", nil)
	await(t, "the log tells", func() bool { return len(p.Logs.Lines(t, "swept")) > 0 })
	if line := p.Logs.Lines(t, "swept")[0]; line["acked"] != 1.0 || line["expired"] != 0.0 || line["bytes"] != 5.0 || line["rows"] != 0.0 {
		t.Errorf("logged %v", line)
	}
}

// A platform that was off for long has a lot to do, and does not wait for the interval.
func TestServer_SweepsWhenItStarts(t *testing.T) {
	t.Parallel()
	rarely := func(s *config.Settings) { s.SweepInterval = "8760h" }
	p := servertest.Start(t, rarely)
	w := p.Create(t, "poll", "")
	files := stage(t, p, w, "a.txt", "b.txt")
	expired, kept := files[0], files[1]
	if _, err := p.DB.Exec(`UPDATE pending_uploads SET expires_at = now() WHERE file_id = $1`, expired.ID()); err != nil {
		t.Fatal(err)
	}
	servertest.Start(t, rarely, func(s *config.Settings) { s.DatabaseURL = p.Config.DatabaseURL })
	await(t, "the file is deleted", func() bool {
		var ids string
		if err := p.DB.QueryRow(`SELECT string_agg(file_id::text, ' ') FROM pending_uploads`).Scan(&ids); err != nil {
			t.Fatal(err)
		}
		return ids == kept.ID()
	})
}
