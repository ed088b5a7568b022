package handlers_test

import (
	"bufio"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/events"
	"github.com/molecule-ai/platform/internal/fairshare"
	"github.com/molecule-ai/platform/internal/handlers"
	"github.com/molecule-ai/platform/internal/notify"
	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// streaming is a server of streams with shorter intervals, and a workspace. Nothing is published to its hub.
type streaming struct {
	*httptest.Server
	db        *sql.DB
	hub       *notify.Hub
	inbox     *activity.Inbox
	workspace uuid.UUID
	token     string
	ended     chan struct{} // receives when a stream has ended
	longest   atomic.Int64  // bytes that were written at once
	writing   atomic.Int64  // since when a write is blocked, in ns; 0: none is
}

func newStreaming(t *testing.T, heartbeat, recheck time.Duration) *streaming {
	t.Helper()
	db := pgtest.Open(t, pgtest.New(t))
	log := slog.New(slog.DiscardHandler)
	tokens := wsauth.New(db, "", log)
	store := workspaces.New(db, tokens, func(string) error { return nil })
	w, token, err := store.Create(t.Context(), t.Name(), workspaces.Poll, "")
	if err != nil {
		t.Fatal(err)
	}
	inbox := activity.New(db)
	receipts := events.New(db, inbox)
	hub := notify.New(notify.Options{Newest: inbox.Newest, NewestReceipts: receipts.NewestReceipts})
	s := &streaming{db: db, hub: hub, inbox: inbox, workspace: w.ID, token: token, ended: make(chan struct{}, 10)}
	events := handlers.NewEventsHandler(store, tokens, receipts, s.hub, fairshare.New(10))
	events.SetIntervals(heartbeat, recheck)
	e := gin.New()
	e.Use(handlers.Log(log), handlers.Recover(), tokens.RequireWorkspace(handlers.Render))
	e.GET("/workspaces/:id/events/stream", func(c *gin.Context) {
		handlers.Wrap(events.Stream)(c)
		s.ended <- struct{}{}
	})
	polls := handlers.NewActivityHandler(store, tokens, s.inbox, s.hub, fairshare.New(10))
	e.GET("/workspaces/:id/activity", handlers.Wrap(polls.List))
	s.Server = httptest.NewUnstartedServer(e)
	s.Listener = impatient{s.Listener, s}
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// impatient closes a connection whose client does not read for a few seconds; the platform does so after 20.
type impatient struct {
	net.Listener
	of *streaming
}

func (l impatient) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	_ = conn.(*net.TCPConn).SetWriteBuffer(4 << 10)
	return impatientConn{conn, l.of}, nil
}

type impatientConn struct {
	net.Conn
	of *streaming
}

func (c impatientConn) Write(p []byte) (int, error) {
	if n := int64(len(p)); n > c.of.longest.Load() {
		c.of.longest.Store(n)
	}
	c.of.writing.Store(time.Now().UnixNano())
	defer c.of.writing.Store(0)
	_ = c.SetWriteDeadline(time.Now().Add(3 * time.Second))
	return c.Conn.Write(p)
}

// open connects and sends the request for a stream.
func (s *streaming) open(t *testing.T, last string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	_, err = fmt.Fprintf(conn, "GET /workspaces/%s/events/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nLast-Event-ID: %s\r\n\r\n",
		s.workspace, s.token, last)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// wantEnd waits until a stream has ended.
func (s *streaming) wantEnd(t *testing.T) {
	t.Helper()
	select {
	case <-s.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the stream did not end")
	}
	if n := s.hub.Subscriptions(); n != 0 {
		t.Errorf("%d subscriptions are left", n)
	}
}

// body reads the stream until it contains the wanted text, or ends.
func body(t *testing.T, conn net.Conn, until string) string {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", answer, err)
	}
	var got strings.Builder
	buffer := make([]byte, 1000)
	for until == "" || !strings.Contains(got.String(), until) {
		n, err := answer.Body.Read(buffer)
		got.Write(buffer[:n])
		if err == io.EOF && until == "" {
			break
		}
		if err != nil {
			t.Fatalf("%q: %v", got.String(), err)
		}
	}
	return got.String()
}

// Planted: a subscription that is not closed.
func TestWait_LeavesNoGoroutineOrSubscription(t *testing.T) {
	t.Parallel()
	s := newStreaming(t, time.Hour, time.Hour)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/workspaces/"+s.workspace.String()+"/activity?wait=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+s.token)
	answer, err := s.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if got, err := io.ReadAll(answer.Body); err != nil || string(got) != "[]\n" || s.hub.Subscriptions() != 0 {
		t.Errorf("%q, %v, and %d subscriptions are left", got, err, s.hub.Subscriptions())
	}
}

// Planted: no heartbeat.
func TestStream_SendsHeartbeats(t *testing.T) {
	t.Parallel()
	s := newStreaming(t, 50*time.Millisecond, time.Hour)
	got := body(t, s.open(t, ""), ":\n\n:\n\n")
	if !strings.HasPrefix(got, "retry: ") || !strings.Contains(got, "\nid: 0-0\n\n:\n\n") {
		t.Errorf("the stream begins %q", got)
	}
}

// Without notifications the hub's poll finds rows and receipts, and wakes the stream. Planted: either left out of the poll;
// receipts looked for by their number only, which the first reader gives them.
func TestStream_HubFindsWhatWasNotNotified(t *testing.T) {
	t.Parallel()
	s := newStreaming(t, time.Hour, time.Hour)
	go s.hub.Run(t.Context())
	conn := s.open(t, "")
	body(t, conn, "id: 0-0")
	_ = conn.SetReadDeadline(time.Now().Add(40 * time.Second))
	var got []byte
	until := func(want string) {
		t.Helper()
		for buffer := make([]byte, 1000); !strings.Contains(string(got), want); {
			n, err := conn.Read(buffer)
			if got = append(got, buffer[:n]...); err != nil {
				t.Fatalf("%q: %v", got, err)
			}
		}
	}
	if err := s.inbox.Record(t.Context(), s.workspace, activity.Entry{Type: "x", Method: "unannounced"}); err != nil {
		t.Fatal(err)
	}
	until("unannounced")
	for _, name := range []string{"first.txt", "second.txt"} {
		if _, err := s.db.ExecContext(t.Context(), `INSERT INTO receipts (workspace_id, kind, state, file_id, filename, size_bytes, at)
			VALUES ($1, 'acked', 'acked', gen_random_uuid(), $2, 5, now())`, s.workspace, name); err != nil {
			t.Fatal(err)
		}
		until(name)
	}
	conn.Close()
	s.wantEnd(t)
}

// A token that was revoked in the database ends its streams too. Planted: no check without a notification; a
// stream that continues if the token cannot be looked up.
func TestStream_EndsAfterItsTokenIsRevoked(t *testing.T) {
	t.Parallel()
	for what, statement := range map[string]string{
		"revoked":           `UPDATE workspace_tokens SET revoked_at = now()`,
		"removed":           `UPDATE workspaces SET status = 'removed'`,
		"cannot be checked": `ALTER TABLE workspace_tokens RENAME TO hidden`,
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newStreaming(t, time.Hour, 100*time.Millisecond)
			conn := s.open(t, "")
			buffer := make([]byte, 1000)
			if _, err := conn.Read(buffer); err != nil { // the stream has started
				t.Fatal(err)
			}
			time.Sleep(250 * time.Millisecond) // the token has been checked at least once
			if _, err := s.db.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
			s.wantEnd(t)
		})
	}
}

// A client that does not read is disconnected. Until then its stream holds no database connection, and at most
// one page in memory. Planted: all events read before any is sent.
func TestStream_StalledReaderIsDisconnected(t *testing.T) {
	t.Parallel()
	s := newStreaming(t, time.Hour, time.Hour)
	const insert = `INSERT INTO activity_logs (workspace_id, seq, activity_type, method) SELECT $1, i, 'x', repeat('m', 200) FROM generate_series(1, 50000) i`
	for _, statement := range []string{insert, `INSERT INTO activity_counters (workspace_id, last_seq) VALUES ($1, 50000)`} {
		if _, err := s.db.ExecContext(t.Context(), statement, s.workspace); err != nil {
			t.Fatal(err)
		}
	}
	begun := time.Now()
	conn := s.open(t, "0-0") // 20 MB, much more than the sockets buffer
	inTime(t, "a write that waits", func() bool {
		since := s.writing.Load()
		if since == 0 || time.Since(time.Unix(0, since)) < 200*time.Millisecond {
			return false
		}
		inUse, waiting := s.db.Stats().InUse, s.hub.Subscriptions()
		if s.writing.Load() != since {
			return false // the write is not blocked any more
		}
		if inUse != 0 || waiting != 1 {
			t.Errorf("%d connections to the database in use by %d streams that are not read", inUse, waiting)
		}
		return true
	})
	s.wantEnd(t)
	if n := s.longest.Load(); n > 100<<10 {
		t.Errorf("%d bytes were held in memory", n)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("disconnected after %v", took)
	}
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, _ := io.Copy(io.Discard, conn); n > 5<<20 {
		t.Errorf("%d bytes were sent to a client that did not read", n)
	}
}

// Planted: streams continue when the platform stops.
func TestStream_EndsOnShutdown(t *testing.T) {
	t.Parallel()
	s := newStreaming(t, time.Hour, time.Hour)
	conn := s.open(t, "")
	time.AfterFunc(200*time.Millisecond, s.hub.Close)
	if got := body(t, conn, ""); !strings.HasSuffix(got, "\nid: 0-0\n\n") {
		t.Errorf("the stream did not end cleanly: %q", got)
	}
	s.wantEnd(t)
}
