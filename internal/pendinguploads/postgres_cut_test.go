package pendinguploads_test

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

const (
	sqlBackend = `SELECT pg_backend_pid()`
	sqlLives   = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)`
	sqlCount   = `
SELECT (SELECT count(*) FROM pending_uploads WHERE workspace_id = $1),
  (SELECT count(*) FROM activity_logs WHERE workspace_id = $1),
  (SELECT count(*) FROM upload_reservations WHERE workspace_id = $1)`

	settleTimeout = 20 * time.Second
)

var errCut = errors.New("the test cut the connection")

// A cutter dials connections and cuts one of them, at the nth message after it was armed.
type cutter struct {
	forward func(message []byte) []byte // how much of that message still reaches the server

	mu   sync.Mutex
	left int // 0: not armed
	cut  bool
}

// arm makes the nth message from now on the last one.
func (c *cutter) arm(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left, c.cut = n, false
}

// disarm reports whether there was a cut.
func (c *cutter) disarm() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = 0
	return c.cut
}

// next reports whether the message that is about to be sent is the one to cut at.
func (c *cutter) next() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left == 0 {
		return false
	}
	c.left--
	c.cut = c.left == 0
	return c.cut
}

// Dial implements pq.Dialer.
func (c *cutter) Dial(network, address string) (net.Conn, error) {
	return c.DialContext(context.Background(), network, address)
}

// DialTimeout implements pq.Dialer.
func (c *cutter) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return c.DialContext(ctx, network, address)
}

// DialContext implements pq.DialerContext.
func (c *cutter) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &cutConn{Conn: conn, cutter: c}, nil
}

type cutConn struct {
	net.Conn
	cutter *cutter
}

// Write sends a message; lib/pq writes each in one call. The message at which the connection is cut is
// reported as sent if all of it was, as by a network that breaks afterwards.
func (c *cutConn) Write(message []byte) (int, error) {
	if !c.cutter.next() {
		return c.Conn.Write(message)
	}
	part := c.cutter.forward(message)
	n, err := c.Conn.Write(part)
	if err := errors.Join(err, c.Close()); err != nil {
		return n, err
	}
	if n < len(message) {
		return n, errCut
	}
	return n, nil
}

// The connection is cut at each message of staging five files, one after the other: before the server
// receives it, in the middle of it, and before the server's answer. Only a COMMIT that the server received
// may leave files behind although Stage fails, and then all of them. In every case no reservation stays,
// and a client that sends the upload again with its key has it staged once.
//
// Planted once each and caught here: the inbox rows in a transaction of their own, after that of the files
// and before it; a commit after the second file; an error of the commit ignored; the key stored in a
// transaction of its own, before that of the files and after it; the reservation not released.
func TestStage_ConnectionCutLeavesAllOrNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name        string
		forward     func(message []byte) []byte
		answersLost int // number of messages at which Stage fails and the files exist
	}{
		{"before the server gets it", func([]byte) []byte { return nil }, 0},
		{"in the middle of it", func(message []byte) []byte { return message[:len(message)/2] }, 0},
		{"before its answer", func(message []byte) []byte { return message }, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newCutStage(t, &cutter{forward: c.forward})
			failed, lost := 0, 0
			for n := 1; ; n++ {
				cut, files, err := s.stage(t, n)
				if err != nil {
					failed++
				}
				if err == nil && files != 5 || !cut && err != nil {
					t.Fatalf("message %d, cut %t: Stage returns %v and there are %d files", n, cut, err, files)
				}
				if err != nil && files == 5 {
					lost++
				}
				if !cut {
					break // there is no nth message
				}
			}
			if failed < 10 { // five files, three chunks, append, commit; only a BEGIN is retried
				t.Errorf("Stage failed for only %d messages", failed)
			}
			if lost != c.answersLost {
				t.Errorf("%d times Stage failed and the files were there, want %d", lost, c.answersLost)
			}
		})
	}
}

type cutStage struct {
	cutter      *cutter
	db, staging *sql.DB
	storage     *pendinguploads.Postgres
}

func newCutStage(t *testing.T, c *cutter) *cutStage {
	t.Helper()
	dsn := pgtest.New(t)
	db := openPool(t, connector(t, dsn, false))
	cuttable := connector(t, dsn, true)
	cuttable.Dialer(c)
	staging := openPool(t, cuttable)
	staging.SetMaxOpenConns(1)
	limits := testLimits
	limits.QuotaBytes, limits.QuotaFiles = 8<<20, 5
	return &cutStage{cutter: c, db: db, staging: staging, storage: pendinguploads.NewPostgres(db, staging, activity.New(db), limits)}
}

// stage stages five files into a new workspace with the cut at the nth message, waits until the server has
// noticed, and returns the number of files that exist then. After that it stages the same files again.
// Files without inbox rows, inbox rows without files, or a part of either end the test.
func (s *cutStage) stage(t *testing.T, n int) (cut bool, files int, stageErr error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	var backend int
	if err := s.staging.QueryRowContext(ctx, sqlBackend).Scan(&backend); err != nil {
		t.Fatal(err)
	}
	workspace := uuid.New()
	batch := func() (files []pendinguploads.NewFile) {
		for i, size := range []int{0, 1<<20 + 1, 10, 2<<20 + 7, 1 << 20} {
			files = append(files, newFile(fmt.Sprintf("%d.txt", i), make([]byte, size)))
		}
		return files
	}
	count := func() (files, rows int) {
		t.Helper()
		var reserved int
		if err := s.db.QueryRowContext(ctx, sqlCount, workspace).Scan(&files, &rows, &reserved); err != nil || reserved != 0 {
			t.Fatalf("message %d: %d reservations, %v", n, reserved, err)
		}
		return files, rows
	}
	s.cutter.arm(n)
	staged, _, stageErr := s.storage.StageOnce(ctx, workspace, "key", batch())
	if cut = s.cutter.disarm(); cut {
		s.awaitEnd(t, ctx, backend)
	}
	files, rows := count()
	if files != rows || files != 0 && files != 5 || stageErr == nil && len(staged) != files {
		t.Fatalf("message %d: %d files, %d inbox rows, Stage returned %d files, %v", n, files, rows, len(staged), stageErr)
	}
	staged, replayed, err := s.storage.StageOnce(ctx, workspace, "key", batch())
	if again, rows := count(); err != nil || replayed != (files == 5) || again != 5 || rows != 5 {
		t.Fatalf("message %d: staged again, replayed %t, %v: %d files, %d inbox rows", n, replayed, err, again, rows)
	}
	for i, f := range staged {
		_, content, err := s.storage.Open(ctx, workspace, f.ID)
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.New()
		if _, err := io.Copy(digest, content); err != nil || [32]byte(digest.Sum(nil)) != f.SHA256 {
			t.Fatalf("message %d: file %d is not what was staged (%v)", n, i, err)
		}
	}
	return cut, files, stageErr
}

// awaitEnd polls until the server has ended the backend: there is no other sign that it has noticed the
// cut and has committed or rolled back.
func (s *cutStage) awaitEnd(t *testing.T, ctx context.Context, backend int) {
	t.Helper()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		var lives bool
		if err := s.db.QueryRowContext(ctx, sqlLives, backend).Scan(&lives); err != nil {
			t.Fatalf("backend %d: %v", backend, err)
		}
		if !lives {
			return
		}
		<-again.C
	}
}
