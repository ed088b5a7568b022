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

// stagingVersion is the oldest schema with which files are staged.
const stagingVersion = 20260701100000

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

// What an operator has who deploys the binary first, and migrates when there is time. Planted: the inbox notes how far it
// was read; the sweep is started.
func TestServer_ServesTheSchemaBeforeStaging(t *testing.T) {
	t.Parallel()
	dsn := servertest.DatabaseBeforeStaging(t)
	db := pgtest.Open(t, dsn)
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
	must(t, p, http.StatusOK, "POST", own+"/a2a", w.Token, `{"method":"message/stream"}`, nil)
	rows := read(t, p, w, "?order=asc")
	if got := summaries(rows); got != "message/send message/stream" {
		t.Fatalf("inbox %q, want both messages", got)
	}
	if got := summaries(read(t, p, w, "?since_id="+rows[0].ID)); got != "message/stream" {
		t.Errorf("after the first: %q, want the second", got)
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
	if len(p.Logs.Lines(t, "the schema is at base: uploads to poll workspaces are refused, nothing is swept, there are no event streams; run 'platform migrate up' and restart")) != 1 {
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

// Only base, the newest schema and a newer one that breaks nothing are served; everything else is refused in a sentence,
// and nothing is changed. Planted: the refusal logged only; a migration run at the start.
func TestServer_ServesNoOtherSchema(t *testing.T) {
	t.Parallel()
	const (
		newer    = `UPDATE schema_migrations SET version = 20990101000000`
		breaking = `COMMENT ON COLUMN schema_migrations.version IS 'platform: migration 20990101000000 breaks older platforms'`
	)
	for name, c := range map[string]struct{ record, want string }{
		"empty":           {`DROP SCHEMA public CASCADE; CREATE SCHEMA public`, "the database has no tables yet; run 'platform migrate up' with the same DATABASE_URL first"},
		"half of base":    {`UPDATE schema_migrations SET version = 20260401100000`, "run 'platform migrate up' with the same DATABASE_URL first"},
		"pending_uploads": {`UPDATE schema_migrations SET version = 20260505100000`, "run 'platform migrate up' of commit 42bbc23515e2 first"},
		"operate":         {`UPDATE schema_migrations SET version = 20260601100000`, "run 'platform migrate up' of commit 42bbc23515e2 first"},
		"newer":           {newer, ""},
		"breaking":        {newer + "; " + breaking, "migration 20990101000000 breaks older platforms, such as this one; use the newer platform"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			settings := servertest.Settings(t)
			settings.DatabaseURL = pgtest.New(t)
			db := pgtest.Open(t, settings.DatabaseURL)
			exec := func(statement string) {
				if _, err := db.Exec(statement); err != nil {
					t.Fatal(err)
				}
			}
			exec(c.record)
			if c.want == "" {
				p := servertest.Start(t, func(s *config.Settings) { s.DatabaseURL = settings.DatabaseURL })
				stage(t, p, p.Create(t, "poll", ""), "a.txt")
				must(t, p, http.StatusOK, "GET", "/readyz", "", "", nil)
				exec(breaking) // the newer platform's next migration, under the running older one
				isError(t, call(t, p, "GET", "/readyz", "", ""), http.StatusServiceUnavailable, "not_ready", "breaks older platforms")
				return
			}
			const tables = `SELECT count(*) || coalesce(to_regclass('schema_migrations')::text, '') FROM pg_tables WHERE schemaname = 'public'`
			var before, after string
			if err := db.QueryRow(tables).Scan(&before); err != nil {
				t.Fatal(err)
			}
			loaded, err := settings.Load()
			if err != nil {
				t.Fatal(err)
			}
			_, err = server.New(t.Context(), loaded, slog.New(slog.DiscardHandler))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if err := db.QueryRow(tables).Scan(&after); err != nil || after != before {
				t.Errorf("tables %s, were %s (%v); nothing is automatic on an operator's database", after, before, err)
			}
		})
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

// A database that lost its tables, such as one that was replaced by an empty one, is not ready, and the answer says what
// to do.
func TestServer_NotReadyWithoutTables(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	exec(t, p, `DROP SCHEMA public CASCADE; CREATE SCHEMA public`)
	isError(t, call(t, p, "GET", "/readyz", "", ""), http.StatusServiceUnavailable, "not_ready", "platform migrate up")
}
