package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/embeddedpg"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// migrations are in the order of their versions. A new one belongs here.
var migrations = []string{
	"20260401100000_workspaces",
	"20260401110000_activity_logs",
	"20260505100000_pending_uploads",
	"20260701100000_quotas_events_objects", // one step with the one before
	"20261201110000_message_keys",
	"20261201120000_inbox_pruning",
	"20261201120100_indexes",
	"20261201130000_secret_rotation",
}

const baseMigrations = 2 // without staging

const appliedNone = "nothing to apply: the schema is up to date\n"

// stepsAboveBase is how many steps lead from the newest schema to the one before staging.
var stepsAboveBase = len(migrations) - baseMigrations - 1

// lines are names, each in a line of its own after a word.
func lines(word string, names ...string) string {
	var b strings.Builder
	for _, name := range names {
		b.WriteString(word + name + "\n")
	}
	return b.String()
}

// undone are the lines of names that were undone, newest first.
func undone(names ...string) string {
	names = slices.Clone(names)
	slices.Reverse(names)
	return lines("undone ", names...)
}

// newDatabase creates a database with the newest schema.
func newDatabase(t *testing.T) (env []string) { return environmentOf(pgtest.New(t)) }

// emptyDatabase creates a database without a schema.
func emptyDatabase(t *testing.T) (env []string) { return environmentOf(pgtest.Empty(t)) }

func environmentOf(dsn string) []string {
	return []string{"DATABASE_URL=" + dsn, "ADMIN_TOKEN=" + servertest.AdminToken, "PUSH_ALLOW_CIDRS=127.0.0.0/8"}
}

// serveOn starts a platform on an operator's database.
func serveOn(t *testing.T, database []string, more ...string) *process {
	t.Helper()
	return serve(t, newFolder(t), append(database, more...)...)
}

// migrate runs a migrate command, which must succeed.
func migrate(t *testing.T, database []string, args ...string) (printed string) {
	t.Helper()
	r := execute(t, newFolder(t), database, append([]string{"migrate"}, args...)...)
	if r.code != 0 || r.stderr != "" {
		t.Fatalf("migrate %q: exit code %d, stderr %q", args, r.code, r.stderr)
	}
	return r.stdout
}

// migrateFails runs a migrate command, which must fail with these words.
func migrateFails(t *testing.T, database []string, want string, args ...string) {
	t.Helper()
	checkRefusal(t, execute(t, newFolder(t), database, append([]string{"migrate"}, args...)...), []string{want})
}

func wantPrinted(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
}

func TestMigrate_GoesUpAndDownAndTellsWhereItIs(t *testing.T) {
	t.Parallel()
	db := emptyDatabase(t)
	base, newest := migrations[:baseMigrations], migrations[len(migrations)-1]
	const rerun = "\nRun `platform migrate up` to apply what is pending.\n\n"
	wantPrinted(t, migrate(t, db, "status"), "No migration has been applied."+rerun+lines("  pending  ", migrations...))
	migrateFails(t, db, "platform: … nothing to undo", "down")
	wantPrinted(t, migrate(t, db, "up"), lines("applied ", migrations...))
	wantPrinted(t, migrate(t, db, "up"), appliedNone)
	wantPrinted(t, migrate(t, db, "down"), undone(newest))
	wantPrinted(t, migrate(t, db, "down", strconv.Itoa(stepsAboveBase-1)), undone(migrations[baseMigrations:len(migrations)-1]...))
	wantPrinted(t, migrate(t, db, "status"), "The schema is at "+base[1]+"."+rerun+
		lines("  applied  ", base...)+lines("  pending  ", migrations[baseMigrations:]...))
	wantPrinted(t, migrate(t, db, "down", "5"), undone(base...))
	wantPrinted(t, migrate(t, db, "up"), lines("applied ", migrations...))
	wantPrinted(t, migrate(t, db, "status"), "The schema is at "+newest+": up to date.\n\n"+lines("  applied  ", migrations...))
}

// Planted: one of the two goes on.
func TestPlatform_RefusesADatabaseBetweenBaseAndCurrent(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"20260505100000", "20260601100000"} {
		dsn := pgtest.New(t)
		mustExec(t, pgtest.Open(t, dsn), `UPDATE schema_migrations SET version = `+version)
		for _, args := range [][]string{{"migrate", "up"}, {"serve"}, {"sweep"}, {"storage", "reconcile"}} {
			checkRefusal(t, execute(t, newFolder(t), environmentOf(dsn), args...), []string{"platform: the database is at version " + version +
				", between the schemas that this platform knows; run 'platform migrate up' of commit 42bbc23515e2 first, the last one that migrates it further"})
		}
	}
}

// A private database that a newer platform has migrated is served, unless that breaks this one. Planted: the start fails
// because there is nothing that it can migrate.
func TestServe_OnThePrivateDatabaseOfANewerPlatform(t *testing.T) {
	t.Parallel()
	dir := newFolder(t)
	serve(t, dir).stop(t)
	record := func(statement string) {
		t.Helper()
		postgres, err := embeddedpg.Start(t.Context(), embeddedpg.Options{DataDir: filepath.Join(dir, "data")})
		if err != nil {
			t.Fatal(err)
		}
		mustExec(t, pgtest.Open(t, postgres.DSN(embeddedpg.DefaultDatabase)), statement)
		if err := postgres.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	record(`UPDATE schema_migrations SET version = 20990101000000`)
	serve(t, dir).stop(t)
	record(`COMMENT ON COLUMN schema_migrations.version IS 'platform: migration 20990101000000 breaks older platforms'`)
	r := execute(t, dir, nil)
	if want := "\nplatform: the database is at version 20990101000000, and migration 20990101000000 breaks older platforms, such as this one; use the newer platform\n"; r.code != 1 ||
		!strings.HasSuffix(r.stderr, want) {
		t.Errorf("exit code %d, stderr %q", r.code, r.stderr)
	}
}

func TestMigrate_ForceRecordsAVersionThatExists(t *testing.T) {
	t.Parallel()
	db := emptyDatabase(t)
	migrate(t, db, "up")
	migrate(t, db, "force", "20260401110000")
	if status := migrate(t, db, "status"); !strings.HasPrefix(status, "The schema is at "+migrations[1]+".\n") {
		t.Errorf("after force: %s", status)
	}
	migrateFails(t, db, "platform: … force version 20260101000000 … no such migration", "force", "20260101000000")
}

func TestMigrate_ReplicasAtOnceApplyEachMigrationOnce(t *testing.T) {
	t.Parallel()
	db := emptyDatabase(t)
	dir := newFolder(t)
	replicas := make([]*process, 6)
	for i := range replicas {
		replicas[i] = start(t, dir, db, "migrate", "up")
	}
	var applied int
	for i, p := range replicas {
		if code := p.exit(t); code != 0 {
			t.Errorf("replica %d: exit code %d: %s", i, code, p.stderr)
		}
		switch printed := p.stdout.String(); printed {
		case lines("applied ", migrations...):
			applied++
		case appliedNone:
		default:
			t.Errorf("replica %d printed %q", i, printed)
		}
	}
	if applied != 1 {
		t.Errorf("%d replicas applied the migrations", applied)
	}
}

// The platform is rolled out before its migration: what worked goes on working.
func TestServe_BeforeTheUploadsMigrationPushesAndAfterItStages(t *testing.T) {
	t.Parallel()
	received := make(chan string, 1)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		received <- r.Method + " " + r.URL.Path + " " + r.Header.Get("Authorization") + " " + string(body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"files":[{"uri":"workspace:note.txt","name":"note.txt","mimeType":"text/plain","size":5}]}`)
	}))
	defer receiver.Close()

	db := emptyDatabase(t)
	migrate(t, db, "up")
	migrate(t, db, "down", strconv.Itoa(stepsAboveBase))
	p := serveOn(t, db)
	poller := p.create(t, servertest.AdminToken, "poll", "")
	pushed := p.create(t, servertest.AdminToken, "push", receiver.URL)
	note := file{"note.txt", []byte("hello")}

	r := p.upload(t, poller, note)
	var refused struct{ Error, Detail string }
	r.JSON(t, &refused)
	if r.Status != http.StatusUnprocessableEntity || refused.Detail == "" ||
		refused.Error != "workspace has no callback URL — chat upload requires push-mode + public URL" {
		t.Errorf("poll upload without the table: %d %s", r.Status, r.Body)
	}
	r = p.upload(t, pushed, note)
	if r.Status != http.StatusOK || !strings.Contains(string(r.Body), "workspace:note.txt") {
		t.Fatalf("push upload without the table: %d %s", r.Status, r.Body)
	}
	got := <-received
	if !strings.HasPrefix(got, "POST /internal/chat/uploads/ingest Bearer "+pushed.Secret+" --") || !strings.Contains(got, "\r\n\r\nhello\r\n") {
		t.Errorf("the workspace received %q", got)
	}

	wantPrinted(t, migrate(t, db, "up"), lines("applied ", migrations[baseMigrations:]...))
	p.stop(t)
	p = serveOn(t, db)
	f := p.mustUpload(t, poller, note)[0]
	if r := p.fetch(t, poller, f.id(), nil); string(r.Body) != "hello" {
		t.Errorf("fetch: %d %q", r.Status, r.Body)
	}
}
