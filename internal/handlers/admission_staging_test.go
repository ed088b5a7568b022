package handlers_test

import (
	"net/http"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// stagingConns matches the connections in use and the size of the staging pool.
var stagingConns = regexp.MustCompile(`(?s)go_sql_in_use_connections\{db_name="staging"\} (\d+).*go_sql_max_open_connections\{db_name="staging"\} (\d+)`)

// staging returns how many connections for writing files wait in the database, and the size of their pool.
func staging(t testing.TB, p *servertest.Platform) (waiting, most int) {
	t.Helper()
	found := stagingConns.FindSubmatch(p.Do(t, servertest.Request{Path: "/metrics"}).Body)
	if found == nil {
		t.Fatal("the metrics have no staging pool")
	}
	inUse, _ := strconv.Atoi(string(found[1]))
	most, _ = strconv.Atoi(string(found[2]))
	// pg_stat_activity's wait_event is not used: a backend that checks for a deadlock, after a second, still
	// waits for the lock.
	err := p.DB.QueryRowContext(t.Context(), `SELECT count(DISTINCT pid) FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE datname = current_database()
		AND NOT granted AND query SIMILAR TO '(INSERT INTO pending_upload_chunks|SELECT pg_advisory_xact_lock)%'`).Scan(&waiting)
	if err != nil {
		t.Fatal(err)
	}
	return min(waiting, inUse), most
}

// inTime waits up to a minute until done, for a busy machine.
func inTime(t testing.TB, what string, done func() bool) {
	t.Helper()
	for late := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// There are more uploads than connections, and all that are being written wait in the database. Short files
// are written while only long ones wait. Planted: files written through the pool for everything else; no
// bound on long files.
func TestStaging_BusyPoolDoesNotBlockOtherRequests(t *testing.T) {
	t.Parallel()
	dsn := pgtest.New(t) + " lock_timeout=0 statement_timeout=0" // a slow machine must not hit a timeout
	p := servertest.Start(t, func(s *config.Settings) { s.DatabaseURL = dsn })
	w := p.Create(t, "poll", "")
	// Two, because one workspace leaves a share of the connections free.
	others := []servertest.Workspace{p.Create(t, "poll", ""), p.Create(t, "poll", "")}
	staged := stage(t, p, w, "staged before")

	lock, err := p.DB.Begin()
	if err != nil {
		t.Fatal(err)
	}
	const uploads = 20 // of each workspace
	statuses := make(chan int, 3*uploads)
	var running sync.WaitGroup
	defer running.Wait()
	defer lock.Rollback()                                                                  // after the first it does nothing
	if _, err := lock.Exec("LOCK TABLE pending_upload_chunks IN SHARE MODE"); err != nil { // reads are not blocked
		t.Fatal(err)
	}
	long := pattern(mib + 1)
	for range uploads {
		running.Go(func() { statuses <- post(t, p, w, file("long.bin", "", long)).Status })
	}
	inTime(t, "as many as write large files waiting, at most half the connections", func() bool {
		waiting, most := staging(t, p)
		return waiting == min(max(runtime.GOMAXPROCS(0), 2), most/2)
	})
	if got := post(t, p, w, file("short.txt", "", "hello")); got.Status != http.StatusOK {
		t.Errorf("a short file while long ones wait: %d %s", got.Status, got.Body)
	}

	for _, other := range others {
		if _, err := lock.Exec("SELECT pg_advisory_xact_lock(hashtextextended($1, 20260601))", other.ID); err != nil {
			t.Fatal(err)
		}
		for range uploads {
			running.Go(func() { statuses <- post(t, p, other, file("short.txt", "", "hello")).Status })
		}
	}
	// Between them the workspaces get at least all but the quarter that stays free for others; whether they get that too
	// depends on who comes first.
	isFull := func() bool { waiting, most := staging(t, p); return waiting >= most-most/4 }
	inTime(t, "all connections for files that these workspaces get waiting", isFull)

	for name, r := range map[string]servertest.Request{
		"content": {Path: pendingPath(w, staged, "/content"), Token: w.Token},
		"ack":     {Path: pendingPath(w, staged, "/ack"), Token: w.Token, Method: http.MethodPost},
		"poll":    {Path: "/workspaces/" + w.ID + "/activity", Token: w.Token},
		"list":    {Path: "/workspaces/" + w.ID + "/pending-uploads", Token: w.Token},
		"message": {Path: "/workspaces/" + w.ID + "/a2a", Token: w.Token, Method: http.MethodPost, Body: strings.NewReader(`{"method":"message/send"}`)},
	} {
		if got := p.Do(t, r); got.Status != http.StatusOK {
			t.Errorf("%s while uploads wait: %d %s", name, got.Status, got.Body)
		}
	}
	if !isFull() {
		t.Error("the pool was not busy all the time")
	}
	if err := lock.Rollback(); err != nil {
		t.Fatal(err)
	}
	for range 3 * uploads {
		if status := <-statuses; status != http.StatusOK {
			t.Errorf("an upload that waited: %d", status)
		}
	}
}
