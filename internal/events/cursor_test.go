package events_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/events"
)

// The load on a position.
const (
	writers     = 12
	filesEach   = 60
	readersEach = 3 // of each limit, which number receipts concurrently
)

var limits = []int{1, 7, 100}

// step is an event of a file that every reader must see.
type step struct {
	file uuid.UUID
	kind events.Kind
}

// TestPosition_MissesNothingUnderConcurrentWriters writes files and messages concurrently, with some
// changes committed late and some rolled back, while readers continue from every position after
// formatting and parsing it. Planted: numbers from a sequence at the time of the change (see below);
// rows read before receipts; the counter locked before the receipts.
func TestPosition_MissesNothingUnderConcurrentWriters(t *testing.T) {
	t.Parallel()
	d := newFixture(t)
	written, seen := drive(t, d)
	for i, s := range seen {
		t.Logf("%s", s.compare(written, fmt.Sprintf("reader %d, limit %d", i, limits[i/readersEach])))
		if s.missed+s.twice+s.disordered+s.unwritten > 0 {
			t.Errorf("%+v", s.tally)
		}
	}
}

// TestHarness_DetectsMissesOfASequence proves that the test above can fail: the same load, but a
// receipt gets its number from a sequence when it is inserted.
func TestHarness_DetectsMissesOfASequence(t *testing.T) {
	t.Parallel()
	d := newFixture(t)
	d.exec(t, `CREATE SEQUENCE naive`)
	d.exec(t, `ALTER TABLE receipts ALTER COLUMN seq SET DEFAULT nextval('naive')`)
	written, seen := drive(t, d)
	missed := 0
	for i, s := range seen {
		t.Logf("%s", s.compare(written, fmt.Sprintf("reader %d, limit %d", i, limits[i/readersEach])))
		missed += s.missed
	}
	if missed == 0 {
		t.Error("the harness detected no missed event")
	}
}

// drive writes and reads concurrently, and returns what was written and what each reader saw.
func drive(t *testing.T, d fixture) (written map[step]bool, seen []*observation) {
	workspace := uuid.New()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	written = map[step]bool{}
	var mu sync.Mutex
	done := make(chan struct{})
	all, ctx := errgroup.WithContext(ctx)
	var writing sync.WaitGroup
	for n := range writers {
		writing.Add(1)
		all.Go(func() error {
			defer writing.Done()
			steps, err := write(ctx, t, d, workspace, rand.New(rand.NewPCG(2026, uint64(n))))
			mu.Lock()
			defer mu.Unlock()
			for _, s := range steps {
				written[s] = true
			}
			return err
		})
	}
	all.Go(func() error { writing.Wait(); close(done); return nil })
	for _, limit := range limits {
		for range readersEach {
			s := &observation{at: map[step]int{}}
			seen = append(seen, s)
			all.Go(func() error { return s.read(ctx, d, workspace, limit, done) })
		}
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	return written, seen
}

// write takes filesEach files from staging to their end, one after the other.
func write(ctx context.Context, t *testing.T, d fixture, workspace uuid.UUID, random *rand.Rand) (steps []step, err error) {
	for range filesEach {
		file := d.stage(t, workspace, "f")
		steps = append(steps, step{file, events.Staged})
		if random.IntN(4) == 0 {
			if err := d.inbox.Record(ctx, workspace, activity.Entry{Type: "a2a_receive", Method: file.String()}); err != nil {
				return nil, err
			}
			steps = append(steps, step{file, events.Message})
		}
		if random.IntN(4) > 0 {
			if err := change(ctx, d, random, sqlFetch, file); err != nil {
				return nil, err
			}
			steps = append(steps, step{file, events.Fetched})
		}
		last, statement := events.Acked, sqlAck
		if random.IntN(5) == 0 {
			last, statement = events.Expired, sqlDelete
		}
		if err := change(ctx, d, random, statement, file); err != nil {
			return nil, err
		}
		steps = append(steps, step{file, last})
	}
	return steps, nil
}

// change changes a file. Some commits are delayed, and some follow a rolled-back attempt.
func change(ctx context.Context, d fixture, random *rand.Rand, statement string, file uuid.UUID) error {
	for again := true; again; {
		again = random.IntN(10) == 0
		tx, err := d.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() // after a commit it does nothing
		if _, err := tx.ExecContext(ctx, statement, file); err != nil {
			return err
		}
		if random.IntN(4) == 0 {
			if _, err := tx.ExecContext(ctx, `SELECT pg_sleep($1)`, 0.02*random.Float64()); err != nil {
				return err
			}
		}
		end := tx.Commit
		if again {
			end = tx.Rollback
		}
		if err := end(); err != nil {
			return err
		}
	}
	return nil
}

type tally struct{ events, missed, twice, disordered, unwritten int }

// observation is what one reader saw.
type observation struct {
	tally
	at map[step]int // when it was seen
}

// read reads until the writers are done and there is nothing more. It continues from random positions
// of a page, not only from the last.
func (s *observation) read(ctx context.Context, d fixture, workspace uuid.UUID, limit int, done <-chan struct{}) error {
	var p events.Position
	for {
		finished := false
		select {
		case <-done:
			finished = true
		default:
		}
		page, more, err := d.log.After(ctx, workspace, p, limit)
		if errors.Is(err, events.ErrGone) { // only with a planted fault; the rest counts as missed
			return nil
		}
		if err != nil {
			return err
		}
		if n := len(page); n > 1 {
			page = page[:1+rand.IntN(n)]
			more = more || len(page) < n
		}
		for _, e := range page {
			key := step{e.FileID, e.Kind}
			if e.Kind == events.Message {
				key.file, _ = uuid.Parse(e.Method)
			}
			if _, ok := s.at[key]; ok {
				s.twice++
			}
			s.at[key] = s.events
			s.events++
		}
		if len(page) > 0 {
			if p, err = events.ParsePosition(page[len(page)-1].String()); err != nil {
				return err
			}
		}
		if finished && !more {
			return nil
		}
	}
}

// compare counts. A step is out of order if it was seen before an earlier step of its file.
func (s *observation) compare(written map[step]bool, who string) string {
	for w := range written {
		if _, ok := s.at[w]; !ok {
			s.missed++
		}
	}
	for seen, at := range s.at {
		if !written[seen] {
			s.unwritten++
		}
		for _, earlier := range map[events.Kind][]events.Kind{
			events.Fetched: {events.Staged}, events.Acked: {events.Staged, events.Fetched}, events.Expired: {events.Staged, events.Fetched},
		}[seen.kind] {
			if before, ok := s.at[step{seen.file, earlier}]; ok && before > at {
				s.disordered++
			}
		}
	}
	return fmt.Sprintf("%s: %d events written, %d seen, %d missed, %d twice, %d out of order, %d never written",
		who, len(written), s.events, s.missed, s.twice, s.disordered, s.unwritten)
}
