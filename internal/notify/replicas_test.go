package notify

import (
	"bytes"
	"context"
	"database/sql"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

// testTimeout bounds every wait of a test.
const testTimeout = 20 * time.Second

// start runs a hub that sends to db and listens with dsn, until the test ends.
func start(t *testing.T, dsn string, db *sql.DB, r *fakeInbox, log *logBuffer) *Hub {
	h := New(Options{Newest: r.Newest, DB: db, DSN: dsn, Log: slog.New(slog.NewTextHandler(log, nil))})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { h.Run(ctx); close(ended) }()
	t.Cleanup(func() {
		stop()
		select {
		case <-ended:
		case <-time.After(testTimeout):
			t.Error("Run did not end")
		}
	})
	return h
}

func pool(t *testing.T, dsn string) *sql.DB {
	db := pgtest.Open(t, dsn)
	db.SetMaxOpenConns(1)
	return db
}

// replicas are two hubs on one database that receive each other's notifications.
func replicas(t *testing.T) (a, b *Hub, db *sql.DB) {
	dsn := pgtest.New(t)
	db = pgtest.Open(t, dsn)
	r := &fakeInbox{newest: map[uuid.UUID]int64{}}
	a, b = start(t, dsn, pool(t, dsn), r, &logBuffer{}), start(t, dsn, pool(t, dsn), r, &logBuffer{})
	waitDelivered(t, a, b)
	waitDelivered(t, b, a)
	return a, b, db
}

// waitDelivered waits until b receives what a publishes. It uses Receipts, because rows are found by
// polling too.
func waitDelivered(t *testing.T, a, b *Hub) {
	t.Helper()
	workspace := uuid.New()
	w := b.Subscribe(workspace, Receipts)
	defer w.Close()
	deadline := time.After(testTimeout)
	for {
		a.Publish(workspace, Receipts)
		select {
		case <-w.Wake():
			return
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatal("no notification arrived from the other replica")
		}
	}
}

// Planted: nothing sent; a hub wakes subscriptions for its own notifications.
func TestReplicas_WakeEachOther(t *testing.T) {
	t.Parallel()
	a, b, _ := replicas(t)
	here, there := a.Subscribe(uuid.New(), Receipts), b.Subscribe(uuid.New(), Receipts)
	var took []time.Duration
	for range 50 {
		begun := time.Now()
		a.Publish(there.workspace, Receipts)
		select {
		case <-there.Wake():
			took = append(took, time.Since(begun))
		case <-time.After(testTimeout):
			t.Fatal("not woken")
		}
		b.Publish(here.workspace, Receipts)
		select {
		case <-here.Wake():
		case <-time.After(testTimeout):
			t.Fatal("not woken")
		}
	}
	slices.Sort(took)
	t.Logf("from replica to replica: p50 %v, max %v", took[len(took)/2], took[len(took)-1])
	if median := took[len(took)/2]; median > time.Second {
		t.Errorf("notifications took %v", median)
	}
	// A change wakes its own replica once, not again when the notification comes back.
	own := a.Subscribe(uuid.New(), Receipts)
	a.Publish(own.workspace, Receipts)
	<-own.Wake()
	waitDelivered(t, a, b)
	waitDelivered(t, b, a) // notifications arrive in order: the replica has received its own
	if takeKinds(own) != 0 {
		t.Error("a replica was woken by its own notification")
	}
}

// There are more workspaces than fit into one payload.
func TestReplicas_SplitManyWorkspacesOverPayloads(t *testing.T) {
	t.Parallel()
	a, b, _ := replicas(t)
	waiters := make([]*Subscription, 2*maxEntries+5)
	for i := range waiters {
		waiters[i] = b.Subscribe(uuid.New(), Access)
	}
	for _, w := range waiters {
		a.Publish(w.workspace, Access)
	}
	deadline := time.After(testTimeout)
	for i, w := range waiters {
		select {
		case <-w.Wake():
			if kinds := w.Take(); kinds != Access {
				t.Fatalf("workspace %d: kinds %d", i, kinds)
			}
		case <-deadline:
			t.Fatalf("workspace %d was not woken", i)
		}
	}
}

// Planted: no second attempt to connect.
func TestReplicas_ReconnectAfterConnectionLoss(t *testing.T) {
	t.Parallel()
	a, b, db := replicas(t)
	for range 3 {
		var cut int
		const kill = `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`
		if err := db.QueryRowContext(t.Context(), kill).Scan(&cut); err != nil || cut < 2 {
			t.Fatalf("%d connections cut, %v", cut, err)
		}
		waitDelivered(t, a, b)
		waitDelivered(t, b, a)
	}
}

// Notifications reach listeners of the same database only, so a hub that listens on another database
// behaves like one behind a pooler in transaction mode. Planted: a log line at every attempt; no
// probe.
func TestListen_ReportsAConnectionWithoutNotificationsOnce(t *testing.T) {
	t.Parallel()
	var log logBuffer
	r := &fakeInbox{newest: map[uuid.UUID]int64{}}
	h := start(t, pgtest.Empty(t), pool(t, pgtest.Empty(t)), r, &log)
	const line = "LISTEN connection lost"
	for begun := time.Now(); !strings.Contains(log.String(), line); time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > testTimeout {
			t.Fatal("nothing was logged")
		}
	}
	w := h.Subscribe(uuid.New(), Rows)
	defer w.Close()
	for range 2 {
		r.add(w.workspace)
		begun := time.Now()
		<-w.Wake()
		if took := time.Since(begun); took > Interval+time.Second {
			t.Errorf("a row was polled after %v", took)
		}
	}
	h.Publish(w.workspace, Rows)
	<-w.Wake()
	time.Sleep(probeTimeout + time.Second) // a second attempt has failed by now
	if n := strings.Count(log.String(), line); n != 1 || !strings.Contains(log.String(), "pooler") {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
}

// Not parallel: it counts goroutines. Planted: the connection not closed when ctx is done.
func TestRun_LeavesNoGoroutine(t *testing.T) {
	before := goleak.IgnoreCurrent()
	dsn := pgtest.Empty(t)
	db := pool(t, dsn)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	h := New(Options{DB: db, DSN: dsn, Newest: (&fakeInbox{}).Newest})
	other := New(Options{DB: db, DSN: dsn})
	go func() { h.Run(ctx); close(ended) }()
	w := h.Subscribe(uuid.New(), Receipts)
	for waiting := true; waiting; {
		if err := other.send(ctx, map[uuid.UUID]Kind{w.workspace: Receipts}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-w.Wake():
			waiting = false
		case <-time.After(10 * time.Millisecond):
		}
	}
	for range 200 { // in flight when the hub stops
		_ = other.send(ctx, nil)
	}
	stop()
	select {
	case <-ended:
	case <-time.After(testTimeout):
		t.Fatal("Run did not end")
	}
	_ = db.Close()
	goleak.VerifyNone(t, before)
}

// logBuffer collects what is logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
