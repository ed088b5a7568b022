package handlers_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

var boundaries atomic.Int64

// postOnce is post with an Idempotency-Key, or several. Each call has a different boundary, as a browser's
// requests do.
func postOnce(t testing.TB, p *servertest.Platform, w servertest.Workspace, keys []string, parts ...part) *servertest.Response {
	t.Helper()
	other := strings.ReplaceAll(t.Name(), "/", "-") + "-" + strings.Repeat("x", int(boundaries.Add(1)%40))
	r := uploadRequest(w, strings.NewReader(strings.ReplaceAll(form(parts...), boundary, other)))
	r.Header.Set("Content-Type", strings.ReplaceAll(formType, boundary, other))
	r.Header["Idempotency-Key"] = keys
	return p.Do(t, r)
}

func keyed(key string) []string { return []string{key} }

// A retry gets the first answer byte for byte, whatever happened since, and from another replica whose sessions
// are in another time zone too. Planted: a new expires_at; times not in UTC.
func TestUpload_RetryWithTheSameKeyIsReplayed(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	files := []part{file("a b.txt", "text/plain", "hello"), file("large.bin", "", pattern(2*mib)), file("", "", "")}
	exec(t, p, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone TO %L', current_database(), 'Asia/Kolkata'); END $$`)
	other := servertest.Start(t, func(s *config.Settings) { s.DatabaseURL = p.Config.DatabaseURL })
	first := postOnce(t, other, w, keyed("key-1"), files...)
	staged := accepted(t, first)
	for _, step := range []func(){
		func() {},
		func() { ack(t, p, w, staged[0]) },
		func() { exec(t, p, `DELETE FROM pending_uploads`) },
	} {
		step()
		for _, replica := range []*servertest.Platform{p, other} {
			again := postOnce(t, replica, w, keyed("key-1"), files...)
			if again.Status != first.Status || string(again.Body) != string(first.Body) {
				t.Errorf("answered %d %s, want %d %s", again.Status, again.Body, first.Status, first.Body)
			}
		}
	}
	if n := count(t, p, "activity_logs"); n != len(files) {
		t.Errorf("%d inbox rows, want %d", n, len(files))
	}
	if n := count(t, p, "pending_uploads"); n != 0 {
		t.Errorf("%d files were staged again", n)
	}
	if n := len(p.Logs.Lines(t, "staged")) + len(other.Logs.Lines(t, "staged")); n != len(files) {
		t.Errorf("%d lines staged, want %d", n, len(files))
	}
	emptyFolder(t, p.Config.SpoolDir)
}

// Planted: ErrKeyReused or ErrKeyInUse as a failure to stage; no Retry-After.
func TestUpload_KeyInUseOrReused(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	accepted(t, postOnce(t, p, w, keyed("key"), file("a.txt", "", "a")))
	for _, f := range []part{file("b.txt", "", "a"), file("a.txt", "text/x-other", "a"), file("a.txt", "", "b")} {
		answered(t, postOnce(t, p, w, keyed("key"), f), http.StatusUnprocessableEntity, map[string]any{
			"error": "this Idempotency-Key was used for other files; use a new one", "code": "idempotency_key_reused",
		})
	}
	tx, err := p.DB.BeginTx(t.Context(), nil) // stands for an upload that is being staged
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() // nothing to keep
	if _, err := tx.Exec(`SELECT pg_advisory_xact_lock(hashtextextended($1 || 'running', 20260601))`, w.ID); err != nil {
		t.Fatal(err)
	}
	r := postOnce(t, p, w, keyed("running"), file("a.txt", "", "a"))
	answered(t, r, http.StatusConflict, map[string]any{
		"error": "the upload with this Idempotency-Key is still running; retry shortly", "code": "idempotency_key_in_use",
	})
	if after := r.Header.Get("Retry-After"); after != "1" {
		t.Errorf("Retry-After %q, want 1", after)
	}
	if lines := p.Logs.Lines(t, "failed"); len(lines) != 0 {
		t.Errorf("logged as a failure of the platform: %v", lines)
	}
	if n := count(t, p, "pending_uploads"); n != 1 {
		t.Errorf("%d files, want the first", n)
	}
}

func TestUpload_KeyIsVisibleASCII(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	for name, keys := range map[string][]string{
		"empty": keyed(""), "a space": keyed("a b"), "a tab": keyed("a\tb"), "not ASCII": keyed("é"), "256 characters": keyed(strings.Repeat("k", 256)),
		"two": {"a", "a"},
	} {
		r := postOnce(t, p, w, keys, file("a.txt", "", pattern(3*mib)))
		if r.Status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
			continue
		}
		answered(t, r, http.StatusBadRequest, map[string]any{
			"error": "Idempotency-Key must be one value of 1 to 255 visible ASCII characters", "code": "invalid_idempotency_key",
		})
	}
	nothingStaged(t, p)
	for i, key := range []string{"!", strings.Repeat("~", 255), `"quoted"`, "quoted", "a,b;c=d"} {
		accepted(t, postOnce(t, p, w, keyed(key), file("a.txt", "", "a")))
		accepted(t, postOnce(t, p, w, keyed(key), file("a.txt", "", "a")))
		if n := count(t, p, "pending_uploads"); n != i+1 {
			t.Errorf("%d files after the key %q, want %d", n, key, i+1)
		}
	}
}

// The platform does not know what a push workspace did with the first upload. It forwards both, without the key.
func TestUpload_KeyIsIgnoredForPushWorkspaces(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	receiver := newReceiver(t)
	w := p.Create(t, "push", receiver.URL)
	for _, key := range []string{"key", "key", "another"} {
		if r := postOnce(t, p, w, keyed(key), file("a.txt", "", "a")); r.Status != http.StatusOK {
			t.Errorf("%d %s", r.Status, r.Body)
		}
		if got := receiver.only(t); got.header.Get("Idempotency-Key") != "" || !strings.Contains(got.body, "a.txt") {
			t.Errorf("the workspace got %v %s", got.header, got.body)
		}
	}
}

// Planted: the quota's fields missing; a full quota logged as a failure; one quota for all workspaces together.
func TestUpload_QuotaRefusalReportsUsage(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.QuotaBytes, s.QuotaFiles = "3MiB", "3" })
	w := p.Create(t, "poll", "")
	full := func(r *servertest.Response, what string, used, limit float64) {
		t.Helper()
		answered(t, r, http.StatusInsufficientStorage, map[string]any{
			"error": "the workspace's quota of staged " + what + " is used up; it has to fetch and acknowledge some first",
			"code":  "quota_exceeded", "quota": what, "used": used, "limit": limit,
		})
		if after := r.Header.Get("Retry-After"); after != "" {
			t.Errorf("Retry-After is %q, want none", after)
		}
	}
	first := stage(t, p, w, pattern(2*mib))
	full(post(t, p, w, file("b", "", pattern(mib+1))), "bytes", 2*mib, 3*mib)
	full(postOnce(t, p, w, keyed("key"), file("b", "", pattern(mib+1))), "bytes", 2*mib, 3*mib)
	stage(t, p, w, pattern(mib))
	full(post(t, p, w, file("b", "", "b")), "bytes", 3*mib, 3*mib)
	stage(t, p, w, "")
	full(post(t, p, w, file("b", "", "")), "files", 3, 3)
	full(post(t, p, w, file("b", "", ""), file("b", "", pattern(mib))), "files", 3, 3)
	if n := count(t, p, "pending_uploads"); n != 3 {
		t.Errorf("%d files, want 3", n)
	}
	if refused := p.Logs.Lines(t, "refused"); len(refused) != 5 || len(p.Logs.Lines(t, "failed")) != 0 || refused[0]["used"] != float64(2*mib) {
		t.Errorf("the log has %v", refused)
	}
	stage(t, p, p.Create(t, "poll", ""), pattern(3*mib))

	ack(t, p, w, first)
	accepted(t, postOnce(t, p, w, keyed("key"), file("b", "", pattern(mib+1))))
	emptyFolder(t, p.Config.SpoolDir)
	if n := count(t, p, "upload_reservations"); n != 0 {
		t.Errorf("%d reservations are left", n)
	}
}
