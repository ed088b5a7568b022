package activity_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// The load on a cursor: every writer writes to every workspace.
const (
	loadWriters    = 16
	loadWorkspaces = 4
	loadDeadline   = 3 * time.Minute

	// The pool sizes of the platform, for files and for everything else.
	filesConns, otherConns = 8, 24
)

var pageSizes = []int{1, 7, 100}

// A feed is what writers append to and pollers follow: the inbox, or a faulty one that the harness
// must detect.
type feed interface {
	pendinguploads.Inbox
	after(ctx context.Context, workspace uuid.UUID, last seen, limit int) ([]seen, error)
}

// seen is a row as a poller received it; the zero value is before the first.
type seen struct {
	id  uuid.UUID
	seq int64
	at  time.Time
	key string // identifies the row to its writer: the file's id, or a generated one for a message
}

// keyOf finds the key in the body of a row.
func keyOf(body json.RawMessage) string {
	var b struct {
		FileID string `json:"file_id"`
		Key    string `json:"key"`
	}
	if json.Unmarshal(body, &b) != nil {
		return ""
	}
	return b.FileID + b.Key
}

// A commit is a committed transaction, with the harness's clock before its Append and after its rows
// were visible.
type commit struct {
	keys           []string
	begun, visible int64
}

// A load drives a feed.
type load struct {
	db, staging *sql.DB
	feed        feed
	rowsEach    int // of a writer in a workspace
	clock       atomic.Int64
	workspaces  [loadWorkspaces]struct {
		id      uuid.UUID
		changed broadcast
	}
	written chan struct{} // closed when the writers are done

	mu      sync.Mutex
	commits [loadWorkspaces][]commit
}

func newLoad(t *testing.T, dsn string, rowsEach int) *load {
	l := &load{db: pgtest.Open(t, dsn), staging: openBinary(t, dsn), rowsEach: rowsEach, written: make(chan struct{})}
	l.db.SetMaxOpenConns(otherConns)
	l.db.SetMaxIdleConns(otherConns)
	for i := range l.workspaces {
		l.workspaces[i].id = uuid.New()
	}
	return l
}

// openBinary opens the pool for files as the platform does.
func openBinary(t *testing.T, dsn string) *sql.DB {
	c, err := pq.NewConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	c.BinaryParameters = true
	connector, err := pq.NewConnectorConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(filesConns)
	db.SetMaxIdleConns(filesConns)
	t.Cleanup(func() { db.Close() })
	return db
}

// run starts all writers and pollers at once, and returns how what the pollers saw compares
// with what the writers wrote, for each of pageSizes.
func (l *load) run(t *testing.T, f feed) []tally {
	l.feed = f
	ctx, cancel := context.WithTimeout(t.Context(), loadDeadline)
	defer cancel()
	all, ctx := errgroup.WithContext(ctx)
	var writers sync.WaitGroup
	writers.Add(loadWriters)
	for n := range loadWriters {
		all.Go(func() error {
			defer writers.Done()
			w := writer{load: l, random: rand.New(rand.NewPCG(2026, uint64(n)))}
			w.files = pendinguploads.NewPostgres(l.db, l.staging, &w, pendinguploads.Limits{
				MaxFileBytes: 8 << 20, MaxBatchBytes: 64 << 20, TTL: time.Hour,
			})
			return w.write(ctx)
		})
	}
	all.Go(func() error { writers.Wait(); close(l.written); return nil })

	polled := make([][loadWorkspaces]struct {
		rows  []seen
		polls int
	}, len(pageSizes))
	for i, size := range pageSizes {
		for ws := range l.workspaces {
			all.Go(func() (err error) {
				p := &polled[i][ws]
				p.rows, p.polls, err = l.poll(ctx, ws, size)
				return err
			})
		}
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	tallies := make([]tally, len(pageSizes))
	for i := range pageSizes {
		for ws, p := range polled[i] {
			tallies[i].add(compare(l.commits[ws], p.rows, p.polls))
		}
	}
	return tallies
}

// poll follows the cursor until the writers are done and there is nothing more.
func (l *load) poll(ctx context.Context, ws, size int) (rows []seen, polls int, err error) {
	var last seen
	for {
		changed, done := l.workspaces[ws].changed.next(), closed(l.written)
		page, err := l.feed.after(ctx, l.workspaces[ws].id, last, size)
		if err != nil {
			return nil, 0, fmt.Errorf("poll: %w", err)
		}
		polls++
		rows = append(rows, page...)
		if len(page) > size {
			return nil, 0, fmt.Errorf("page of %d rows, want at most %d", len(page), size)
		}
		if len(rows) > 2*loadWriters*l.rowsEach { // a faulty cursor repeats rows for ever
			return rows, polls, nil
		}
		if len(page) > 0 {
			last = page[len(page)-1]
			continue
		}
		if done {
			return rows, polls, nil
		}
		select {
		case <-changed:
		case <-l.written:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// A writer is also the inbox of its Storage, so that it can delay some commits.
type writer struct {
	*load
	random *rand.Rand
	files  *pendinguploads.Postgres
	begun  int64 // the clock before its last append
}

func (w *writer) Append(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, entries ...activity.Entry) error {
	w.begun = w.clock.Add(1)
	if err := w.feed.Append(ctx, tx, workspace, entries...); err != nil {
		return err
	}
	if w.random.IntN(8) > 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, "SELECT pg_sleep($1)", 0.010*w.random.Float64())
	return err
}

// write writes rowsEach rows to every workspace, in transactions of all kinds.
func (w *writer) write(ctx context.Context) error {
	var left [loadWorkspaces]int
	for i := range left {
		left[i] = w.rowsEach
	}
	for open := loadWorkspaces; open > 0; {
		ws := w.random.IntN(loadWorkspaces)
		if left[ws] == 0 {
			continue
		}
		keys, err := w.transaction(ctx, ws, min(left[ws], 1+w.random.IntN(24)))
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if len(keys) == 0 {
			continue
		}
		w.mu.Lock()
		w.commits[ws] = append(w.commits[ws], commit{keys, w.begun, w.clock.Add(1)})
		w.mu.Unlock()
		w.workspaces[ws].changed.ring()
		if left[ws] -= len(keys); left[ws] == 0 {
			open--
		}
	}
	return nil
}

// transaction writes up to n rows and returns their keys in order, none if it was rolled
// back.
func (w *writer) transaction(ctx context.Context, ws, n int) ([]string, error) {
	id := w.workspaces[ws].id
	switch kind := w.random.IntN(100); {
	case kind < 2:
		return w.stage(ctx, id, 1, 4<<20)
	case kind < 10:
		return w.stage(ctx, id, min(n, 4), 64<<10)
	case kind < 50:
		return w.stage(ctx, id, n, 1<<10)
	default:
		return w.send(ctx, id, n, kind >= 95)
	}
}

var content = make([]byte, 4<<20)

func (w *writer) stage(ctx context.Context, workspace uuid.UUID, n, size int) ([]string, error) {
	files := make([]pendinguploads.NewFile, n)
	for i := range files {
		files[i] = pendinguploads.NewFile{Name: "notes.txt", MIMEType: "text/plain", Size: int64(size),
			Content: bytes.NewReader(content[:size])}
	}
	staged, err := w.files.Stage(ctx, workspace, files)
	keys := make([]string, len(staged))
	for i, f := range staged {
		keys[i] = f.ID.String()
	}
	return keys, err
}

func (w *writer) send(ctx context.Context, workspace uuid.UUID, n int, rollback bool) ([]string, error) {
	keys, entries := make([]string, n), make([]activity.Entry, n)
	for i := range entries {
		keys[i] = uuid.NewString()
		entries[i] = activity.Entry{Type: activity.TypeA2AReceive, Method: "message/send",
			RequestBody: json.RawMessage(`{"key":"` + keys[i] + `"}`)}
	}
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback() // after a commit it does nothing
	if err := w.Append(ctx, tx, workspace, entries...); err != nil || rollback {
		return nil, err
	}
	return keys, tx.Commit()
}

// A broadcast wakes all its receivers.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

// next returns a channel that the next ring closes.
func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
