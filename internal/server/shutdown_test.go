package server_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/server"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// waiters are held polls, each on a connection of its own. They cost the test no goroutine and hardly any memory.
type waiters []net.Conn

// wait sends n polls to the inbox of w.
func wait(t *testing.T, addr string, n int, w servertest.Workspace) waiters {
	t.Helper()
	all := make(waiters, n)
	for i := range all {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := fmt.Fprintf(conn, "GET /workspaces/%s/activity?wait=55 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", w.ID, w.Token); err != nil {
			t.Fatal(err)
		}
		all[i] = conn
	}
	return all
}

// answered fails the test unless each poll is answered with status 200 and the body want.
func (all waiters) answered(t *testing.T, want string) {
	t.Helper()
	for i, conn := range all {
		_ = conn.SetReadDeadline(time.Now().Add(testTimeout))
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("poll %d: %v", i, err)
		}
		body, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Fatalf("poll %d: %d %s, %v", i, answer.StatusCode, body, err)
		}
	}
}

// run runs a platform without servertest, so that a test can stop it and observe that.
func run(t *testing.T, change ...func(*config.Settings)) (p *servertest.Platform, stop func() time.Duration) {
	settings := servertest.Settings(t)
	for _, f := range change {
		f(&settings)
	}
	settings.DatabaseURL = pgtest.New(t)
	c, err := settings.Load()
	if err != nil {
		t.Fatal(err)
	}
	logs := &servertest.Logs{}
	s, err := server.New(t.Context(), c, slog.New(slog.NewJSONHandler(logs, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(cancel)
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	p = &servertest.Platform{URL: "http://" + s.Addr(), Config: c, DB: pgtest.Open(t, settings.DatabaseURL), Logs: logs}
	return p, func() time.Duration {
		begun := time.Now()
		cancel()
		select {
		case err := <-ended:
			if err != nil || logs.String() != "" {
				t.Errorf("stopped: %v\n%s", err, logs)
			}
		case <-time.After(testTimeout):
			t.Fatal("the platform did not stop")
		}
		return time.Since(begun)
	}
}

// waitUntilHeld waits until the platform holds all of them.
func (all waiters) waitUntilHeld(t *testing.T, p *servertest.Platform) {
	t.Helper()
	waitUntilHeld(t, p, len(all))
}

// waitUntilHeld waits until the platform holds n polls and streams. The metric counts them from their start, so none may
// use a database connection in two readings.
func waitUntilHeld(t *testing.T, p *servertest.Platform, n int) {
	t.Helper()
	idle := 0
	for begun := time.Now(); idle < 2; time.Sleep(20 * time.Millisecond) {
		var polls, connections int
		for _, line := range strings.Split(string(call(t, p, http.MethodGet, "/metrics", "", "").Body), "\n") {
			_, _ = fmt.Sscanf(line, `molecule_requests_in_flight{operation="wait"} %d`, &polls)
			_, _ = fmt.Sscanf(line, `go_sql_in_use_connections{db_name="main"} %d`, &connections)
		}
		if idle++; polls < n || connections > 0 {
			idle = 0
		}
		if time.Since(begun) > testTimeout {
			t.Fatalf("%d of %d polls are held, %d connections in use", polls, n, connections)
		}
	}
}

// Not parallel: it measures the process. 2,000 polls and a stream are held without a database connection, in little
// memory. When the platform stops they end at once, each with an answer, and leave no goroutine. Planted: the hub not
// closed when the platform stops.
func TestShutdown_EndsHeldPollsAtOnce(t *testing.T) {
	const polls = 2000
	before := goleak.IgnoreCurrent()
	p, stop := run(t)
	w := p.Create(t, "poll", "")
	addr := strings.TrimPrefix(p.URL, "http://")
	all := wait(t, addr, 50, w)
	all.waitUntilHeld(t, p)
	used := memory()
	for range polls / 200 { // in batches, so that none waits too long for a database connection
		all = append(all, wait(t, addr, 200, w)...)
		all.waitUntilHeld(t, p)
	}
	perPoll := (memory() - used) / polls
	t.Logf("%d held polls: %.1f KiB each", polls, float64(perPoll)/1024)
	// The race detector uses a third of it; cmd/platform measures the real program more closely.
	if perPoll > 48<<10 {
		t.Errorf("%d bytes for a held poll", perPoll)
	}
	var busy int
	const working = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'`
	if err := p.DB.QueryRowContext(t.Context(), working).Scan(&busy); err != nil || busy > 2 {
		t.Errorf("%d connections are in use, %v", busy, err)
	}
	s := listen(t, p, w.ID, w.Token, "")
	took := stop()
	t.Logf("%d held polls and a stream end, and the platform with them, in %v", polls, took.Round(time.Millisecond))
	if took > 5*time.Second {
		t.Errorf("stopping took %v", took)
	}
	all.answered(t, "[]")
	s.ended()
	s.close()
	for _, conn := range all {
		_ = conn.Close()
	}
	http.DefaultClient.CloseIdleConnections()
	_ = p.DB.Close()
	goleak.VerifyNone(t, before)
}

// After the signal the platform answers 503 at /readyz and goes on serving everything for DRAIN_DELAY, so that no request
// fails before the load balancer notices. Planted: no delay; held polls ended, or the listener closed, before its end.
func TestShutdown_IsUnreadyBeforeItStops(t *testing.T) {
	t.Parallel()
	const delay = 8 * time.Second
	p, stop := run(t, func(s *config.Settings) { s.DrainDelay = delay.String() })
	w := p.Create(t, "poll", "")
	poll := hold(t, p, w, w.Token, "wait=55")
	poll.isHeld(t)
	took := make(chan time.Duration)
	begun := time.Now()
	go func() { took <- stop() }()
	for ; ; time.Sleep(10 * time.Millisecond) {
		if r := call(t, p, http.MethodGet, "/readyz", "", ""); r.Status == http.StatusServiceUnavailable {
			isError(t, r, http.StatusServiceUnavailable, "not_ready", "stopping")
			break
		} else if time.Since(begun) > testTimeout {
			t.Fatalf("readyz: %d %s", r.Status, r.Body)
		}
	}
	http.DefaultClient.CloseIdleConnections() // the next request opens a new connection
	poll.isHeld(t)
	stage(t, p, w, "late.txt")
	if r, _ := poll.end(t); r.Status != http.StatusOK || !strings.Contains(string(r.Body), "late.txt") {
		t.Errorf("poll: %d %s", r.Status, r.Body)
	}
	call(t, p, http.MethodGet, "/health", "", "")
	if d := <-took; d < delay || d > delay+5*time.Second {
		t.Errorf("it stopped after %v", d)
	}
}

// memory returns the bytes that the process uses, stacks included.
func memory() uint64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// A database that hangs neither answers nor closes its connections, so work that waits for it does not end. Planted: no
// timeout for background work.
func TestShutdown_DoesNotWaitForADatabaseThatHangs(t *testing.T) {
	t.Parallel()
	settings := servertest.Settings(t)
	dsn, freeze := freezer(t, pgtest.New(t))
	settings.DatabaseURL, settings.SweepInterval = dsn, "1s"
	c, err := settings.Load()
	if err != nil {
		t.Fatal(err)
	}
	logs := &servertest.Logs{}
	s, err := server.New(t.Context(), c, slog.New(slog.NewJSONHandler(logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	waits := freeze()
	<-waits // a query is blocked
	cancel()
	select {
	case err := <-ended:
		if err != nil || !strings.Contains(logs.String(), "did not end within 5 s") {
			t.Errorf("%v\n%s", err, logs)
		}
	case <-time.After(testTimeout):
		t.Fatal("the platform did not stop")
	}
}

// freezer is a proxy in front of a database. After freeze it forwards nothing; waits is closed when a client has sent
// something since.
func freezer(t *testing.T, dsn string) (through string, freeze func() (waits <-chan struct{})) {
	t.Helper()
	place := regexp.MustCompile(`host='?([^' ]+)'? port='?(\d+)'?`)
	target := place.FindStringSubmatch(dsn)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil || target == nil {
		t.Fatal(dsn, err)
	}
	t.Cleanup(func() { listener.Close() })
	var frozen atomic.Bool
	waits := make(chan struct{})
	var once sync.Once
	pass := func(to, from net.Conn, asks bool) {
		defer to.Close()
		for b := make([]byte, 32<<10); ; {
			n, err := from.Read(b)
			if frozen.Load() {
				if asks && n > 0 {
					once.Do(func() { close(waits) })
				}
				<-t.Context().Done()
				return
			}
			if _, werr := to.Write(b[:n]); err != nil || werr != nil {
				return
			}
		}
	}
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", target[1]+"/.s.PGSQL."+target[2])
			if err != nil {
				near.Close()
				continue
			}
			go pass(far, near, true)
			go pass(near, far, false)
		}
	}()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return place.ReplaceAllString(dsn, "host=127.0.0.1 port="+port), func() <-chan struct{} {
		frozen.Store(true)
		return waits
	}
}
