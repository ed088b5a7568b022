package server_test

import (
	"database/sql"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/lib/pq"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/embeddedpg"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/schema"
	"github.com/molecule-ai/platform/internal/server"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// The migrations that bring pending_uploads, and what quotas, keys and sweeping need.
const (
	stagingVersion   = 20260505100000
	operatingVersion = 20260601100000
)

const noStaging = "workspace has no callback URL — chat upload requires push-mode + public URL"

// nameOf returns the name of the database.
func nameOf(t testing.TB, db *sql.DB) string {
	t.Helper()
	var name string
	if err := db.QueryRowContext(t.Context(), `SELECT current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	return name
}

// zonedDatabase makes a database whose sessions are not in UTC.
func zonedDatabase(t testing.TB) string {
	t.Helper()
	dsn := pgtest.New(t)
	db := pgtest.Open(t, dsn)
	if _, err := db.Exec(`ALTER DATABASE ` + pq.QuoteIdentifier(nameOf(t, db)) + ` SET timezone TO 'America/New_York'`); err != nil {
		t.Fatal(err)
	}
	return dsn
}

// before makes a database that is migrated to just before that version.
func before(t testing.TB, version uint) (string, *sql.DB) {
	t.Helper()
	dsn := pgtest.Empty(t)
	db := pgtest.Open(t, dsn)
	if _, err := schema.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	for {
		status, err := schema.Read(t.Context(), db)
		if err == nil && status.Current < version {
			return dsn, db
		}
		if err == nil {
			_, err = schema.Down(t.Context(), db, 1)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// What an operator has who deploys the binary first, and migrates when there is time.
func TestServer_ServesTheSchemaBeforeStaging(t *testing.T) {
	t.Parallel()
	dsn, db := before(t, stagingVersion)
	on := func(s *config.Settings) { s.DatabaseURL = dsn }
	p := servertest.Start(t, on)
	w := p.Create(t, "poll", "")
	own := "/workspaces/" + w.ID

	refused := func(r *servertest.Response) {
		t.Helper()
		var got map[string]string
		r.JSON(t, &got)
		if r.Status != http.StatusUnprocessableEntity || got["error"] != noStaging || got["code"] != "no_callback_url" ||
			!strings.Contains(got["detail"], "platform migrate up") || len(got) != 3 {
			t.Errorf("upload: %d %s", r.Status, r.Body)
		}
	}
	refused(uploadForm(t, p, w.ID, w.Token, "a.txt"))
	must(t, p, http.StatusOK, "POST", "/registry/register", w.Token, `{"id":"`+w.ID+`","agent_card":{}}`, nil)
	must(t, p, http.StatusOK, "POST", "/registry/heartbeat", w.Token, `{"workspace_id":"`+w.ID+`"}`, nil)
	must(t, p, http.StatusOK, "POST", own+"/a2a", w.Token, `{"method":"message/send"}`, nil)
	if got := summaries(read(t, p, w, "")); got != "message/send" {
		t.Errorf("inbox %q, want the message", got)
	}
	var ready struct {
		Version uint `json:"schema_version"`
		Staging bool
	}
	must(t, p, http.StatusOK, "GET", "/readyz", "", "", &ready)
	if ready.Staging || ready.Version >= stagingVersion {
		t.Errorf("ready: %+v", ready)
	}
	isError(t, call(t, p, "GET", own+"/pending-uploads", w.Token, ""), http.StatusNotFound, "not_found", "no such path")
	if len(p.Logs.Lines(t, "uploads to poll workspaces are refused: the database has no pending_uploads; run 'platform migrate up' and restart")) != 1 {
		t.Error("the operator is not told")
	}

	if _, err := schema.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	refused(uploadForm(t, p, w.ID, w.Token, "a.txt")) // the running one goes on as it was
	restarted := servertest.Start(t, on)
	stage(t, restarted, w, "a.txt")
	must(t, restarted, http.StatusOK, "GET", "/readyz", "", "", &ready)
	if !ready.Staging || ready.Version < stagingVersion {
		t.Errorf("ready: %+v", ready)
	}
}

func TestServer_EmptyDatabaseSaysWhatToDo(t *testing.T) {
	t.Parallel()
	settings := servertest.Settings(t)
	settings.DatabaseURL = pgtest.Empty(t)
	c, err := settings.Load()
	if err != nil {
		t.Fatal(err)
	}
	_, err = server.New(t.Context(), c, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "platform migrate up") {
		t.Errorf("error %v, want what to run", err)
	}
	db := pgtest.Open(t, settings.DatabaseURL)
	var tables int
	if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`).Scan(&tables); err != nil || tables != 0 {
		t.Errorf("%d tables (%v); nothing is automatic on an operator's database", tables, err)
	}
}

// While the database is gone the process lives and says so; it comes back by itself.
func TestServer_DatabaseGone(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	must(t, p, http.StatusOK, "GET", "/readyz", "", "", nil)
	name := nameOf(t, p.DB)
	other := pgtest.Open(t, pgtest.Server().DSN(embeddedpg.DefaultDatabase))
	allow := func(allowed string) {
		t.Helper()
		if _, err := other.Exec(`ALTER DATABASE ` + pq.QuoteIdentifier(name) + ` ALLOW_CONNECTIONS ` + allowed); err != nil {
			t.Fatal(err)
		}
	}
	allow("false")
	if _, err := other.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1`, name); err != nil {
		t.Fatal(err)
	}
	isError(t, call(t, p, "GET", "/readyz", "", ""), http.StatusServiceUnavailable, "database_unavailable", "database does not answer")
	isJSON(t, call(t, p, "GET", "/health", "", ""), http.StatusOK, `{"status":"ok"}`)
	isError(t, call(t, p, "GET", "/workspaces/"+w.ID, w.Token, ""), http.StatusServiceUnavailable, "platform_unavailable", "unavailable")
	isError(t, call(t, p, "GET", "/workspaces", admin, ""), http.StatusInternalServerError, "internal", "internal error")
	isError(t, call(t, p, "GET", "/workspaces", "wrong", ""), http.StatusUnauthorized, "unauthorized", "token")
	if logged := p.Logs.String(); !strings.Contains(logged, "not currently accepting connections") {
		t.Error("the cause is not in the log")
	}
	allow("true")
	must(t, p, http.StatusOK, "GET", "/readyz", "", "", nil)
	must(t, p, http.StatusOK, "GET", "/workspaces/"+w.ID, w.Token, "", nil)
}

// A database that lost its tables is not ready, and the answer says what to do.
func TestServer_NotReadyWithoutTables(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	exec(t, p, `ALTER TABLE activity_logs RENAME TO hidden`)
	isError(t, call(t, p, "GET", "/readyz", "", ""), http.StatusServiceUnavailable, "not_ready", "platform migrate up")
}
