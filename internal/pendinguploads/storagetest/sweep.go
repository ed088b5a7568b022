package storagetest

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// age moves everything that happened to the file into the past.
func (s suite) age(t *testing.T, ctx context.Context, f pendinguploads.File, by time.Duration) {
	t.Helper()
	if err := s.Age(ctx, f.ID, by); err != nil {
		t.Fatal(err)
	}
}

// sweepAll sweeps until More is not set.
func (s suite) sweepAll(ctx context.Context, retention time.Duration) (pendinguploads.Swept, error) {
	var all pendinguploads.Swept
	for {
		swept, err := s.Storage.Sweep(ctx, retention)
		all.Acked += swept.Acked
		all.Expired += swept.Expired
		all.AckedBytes += swept.AckedBytes
		all.ExpiredBytes += swept.ExpiredBytes
		if err != nil || !swept.More {
			return all, err
		}
	}
}

func (s suite) mustSweep(t *testing.T, ctx context.Context, retention time.Duration, want pendinguploads.Swept) {
	t.Helper()
	for range 2 { // Sweepable deletes nothing
		if due, err := s.Storage.Sweepable(ctx, retention); err != nil || due != want {
			t.Errorf("Sweepable(%s): %+v, %v; want %+v", retention, due, err, want)
		}
	}
	if swept, err := s.sweepAll(ctx, retention); err != nil || swept != want {
		t.Errorf("Sweep(%s): %+v, %v; want %+v", retention, swept, err, want)
	}
	if swept, err := s.Storage.Sweep(ctx, retention); err != nil || swept != (pendinguploads.Swept{}) {
		t.Errorf("Sweep(%s) again: %+v, %v", retention, swept, err)
	}
	if due, err := s.Storage.Sweepable(ctx, retention); err != nil || due != (pendinguploads.Swept{}) {
		t.Errorf("Sweepable(%s) afterwards: %+v, %v", retention, due, err)
	}
}

func (s suite) sweepDeletesWhatIsDue(t *testing.T, ctx context.Context) {
	s.mustSweep(t, ctx, 0, pendinguploads.Swept{})
	const big = 2*mib + 1
	type want int
	const (
		stays     want = iota // whatever the retention
		stillThen             // with a retention of an hour, but not of 0
		goes
	)
	var files []pendinguploads.File
	var wants []want
	add := func(w want, do ...func(pendinguploads.File)) {
		_, f := s.stageOne(t, ctx, uuid.New(), big+len(files)) // all sizes differ
		for _, d := range do {
			d(f)
		}
		files, wants = append(files, f), append(wants, w)
	}
	ack := func(f pendinguploads.File) { s.ack(t, ctx, f, true) }
	fetched := func(f pendinguploads.File) {
		if _, err := s.Storage.MarkFetched(ctx, f.Workspace, f.ID); err != nil {
			t.Fatal(err)
		}
	}
	expire := func(f pendinguploads.File) { s.expire(t, ctx, f) }
	aged := func(by time.Duration) func(pendinguploads.File) {
		return func(f pendinguploads.File) { s.age(t, ctx, f, by) }
	}
	add(stays)
	add(stays, fetched)
	add(stays, aged(limits.TTL-time.Minute))
	add(stillThen, ack)
	add(stillThen, ack, aged(59*time.Minute))
	add(stillThen, ack, expire) // what was acknowledged in time does not expire
	add(stillThen, ack, aged(59*time.Minute), expire)
	add(goes, ack, aged(61*time.Minute))
	add(goes, fetched, ack, aged(1000*time.Hour))
	add(goes, expire)
	add(goes, fetched, expire)
	add(goes, aged(limits.TTL+time.Minute))

	total := func(from want) (s pendinguploads.Swept) {
		for i, f := range files {
			switch {
			case wants[i] != from:
			case i < 9: // the acknowledged ones come first
				s.Acked, s.AckedBytes = s.Acked+1, s.AckedBytes+f.Size
			default:
				s.Expired, s.ExpiredBytes = s.Expired+1, s.ExpiredBytes+f.Size
			}
		}
		return s
	}
	check := func(gone want) {
		t.Helper()
		for i, f := range files {
			if wants[i] >= gone {
				s.mustBeMissing(t, ctx, f.Workspace, f.ID)
			} else {
				s.mustRead(t, ctx, f, newSample(int(f.Size)))
			}
		}
	}
	s.mustSweep(t, ctx, 1000*time.Hour+time.Minute, pendinguploads.Swept{
		Expired: 3, ExpiredBytes: files[9].Size + files[10].Size + files[11].Size, // whatever the retention
	})
	wants[9], wants[10], wants[11] = 3, 3, 3
	s.mustSweep(t, ctx, time.Hour, total(goes))
	check(goes)
	s.mustSweep(t, ctx, 0, total(stillThen))
	check(stillThen)
}

// Several sweeps at the same time delete each file once, and together all of them.
func (s suite) sweepersShare(t *testing.T, ctx context.Context) {
	const workspaces, each = 8, 80
	var want pendinguploads.Swept
	for range workspaces {
		var samples []sample
		for i := range each {
			samples = append(samples, newSample(i))
		}
		for i, f := range s.stage(t, ctx, uuid.New(), samples...) {
			switch i % 4 {
			case 0:
				s.expire(t, ctx, f)
				want.Expired, want.ExpiredBytes = want.Expired+1, want.ExpiredBytes+f.Size
			case 1, 2:
				s.ack(t, ctx, f, true)
				want.Acked, want.AckedBytes = want.Acked+1, want.AckedBytes+f.Size
			}
		}
	}
	var acked, expired, ackedBytes, expiredBytes atomic.Int64
	replicas := []suite{s, s.withQuota(0, 0)}
	start := make(chan struct{})
	g, groupCtx := errgroup.WithContext(ctx)
	for i := range 6 {
		g.Go(func() error {
			<-start
			swept, err := replicas[i%2].sweepAll(groupCtx, 0)
			acked.Add(int64(swept.Acked))
			expired.Add(int64(swept.Expired))
			ackedBytes.Add(swept.AckedBytes)
			expiredBytes.Add(swept.ExpiredBytes)
			return err
		})
	}
	close(start)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	got := pendinguploads.Swept{
		Acked: int(acked.Load()), Expired: int(expired.Load()), AckedBytes: ackedBytes.Load(), ExpiredBytes: expiredBytes.Load(),
	}
	if got != want {
		t.Errorf("together they swept %+v, want %+v", got, want)
	}
	s.mustSweep(t, ctx, 0, pendinguploads.Swept{})
}

// Files are acknowledged, expire and are read while they are swept. The only error is that a file is gone,
// and no reader gets less than all of it with io.EOF. In each round the file ends a little later, after 0,
// 1, 2 … of the reads. Where reads are too fast to be cut often, there are more rounds.
func (s suite) sweepRaces(t *testing.T, ctx context.Context) {
	const enough, atMost, readers = 40, 400, 4
	var swept, firsts, expired, read atomic.Int64
	done := make(chan struct{})
	sweepers, sweepCtx := errgroup.WithContext(ctx)
	for range 3 {
		sweepers.Go(func() error {
			for {
				all, err := s.sweepAll(sweepCtx, 0)
				swept.Add(int64(all.Acked + all.Expired))
				if err != nil {
					return err
				}
				select {
				case <-done:
					return nil
				default:
				}
			}
		})
	}
	round := int64(0)
	for ; round < enough || round < atMost && read.Load() == readers*round; round++ {
		want, f := s.stageOne(t, ctx, uuid.New(), 2*mib+1)
		var ended atomic.Int32
		start, over := make(chan struct{}), make(chan struct{})
		overAfter := int32(round % (readers + 1))
		if overAfter == 0 {
			over = start
		}
		g, groupCtx := errgroup.WithContext(ctx)
		for range readers {
			g.Go(func() error {
				<-over
				_, first, err := s.Storage.Ack(groupCtx, f.Workspace, f.ID)
				if first {
					firsts.Add(1)
				}
				return vanished(err)
			})
			g.Go(func() error {
				<-start
				err := s.fetch(groupCtx, f, want)
				if ended.Add(1) == overAfter {
					close(over)
				}
				if err == nil {
					read.Add(1)
					_, err = s.Storage.MarkFetched(groupCtx, f.Workspace, f.ID)
				}
				return vanished(err)
			})
		}
		if round%2 == 0 {
			expired.Add(1)
			g.Go(func() error {
				<-over
				return s.Expire(groupCtx, f.ID)
			})
		}
		close(start)
		if err := g.Wait(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	rounds := round
	close(done)
	if err := sweepers.Wait(); err != nil {
		t.Fatal(err)
	}
	last, err := s.sweepAll(ctx, 0)
	if n := swept.Load() + int64(last.Acked+last.Expired); err != nil || n != rounds {
		t.Errorf("%d files were swept (%v), want %d", n, err, rounds)
	}
	if n := firsts.Load(); n < rounds-expired.Load() || n > rounds {
		t.Errorf("%d acks were the first, of %d files of which %d expired", n, rounds, expired.Load())
	}
	if n := read.Load(); n == 0 || n == readers*rounds {
		t.Errorf("%d of %d reads got all of the file: it was no race", n, readers*rounds)
	}
}
