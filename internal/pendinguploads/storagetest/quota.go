package storagetest

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// withQuota returns another Storage on the same files with a quota; 0 is unlimited.
func (s suite) withQuota(bytes, files int64) suite {
	l := limits
	l.QuotaBytes, l.QuotaFiles = bytes, files
	s.Storage = s.Open(l)
	return s
}

// mustBeFull checks that the quota refuses the files before they are read, and the figures of the error.
func (s suite) mustBeFull(t *testing.T, ctx context.Context, workspace uuid.UUID, want pendinguploads.QuotaError, samples ...sample) {
	t.Helper()
	files := newFiles(samples...)
	for i := range files {
		files[i].Content = iotest.ErrReader(errors.New("it was read"))
	}
	staged, err := s.Storage.Stage(ctx, workspace, files)
	var got *pendinguploads.QuotaError
	if staged != nil || !errors.Is(err, pendinguploads.ErrQuota) || !errors.As(err, &got) || *got != want {
		t.Errorf("%d files, %v; want %v", len(staged), err, &want)
	}
}

// usage returns what counts for the quota: files that are neither acknowledged nor expired.
func (s suite) usage(t *testing.T, ctx context.Context, workspace uuid.UUID) (bytes, files int64) {
	t.Helper()
	for _, f := range s.list(t, ctx, workspace, pendinguploads.ListQuery{Limit: pendinguploads.MaxListLimit}) {
		bytes += f.Size
		files++
	}
	return bytes, files
}

// Fifty uploads at the same time on two replicas, for about twice the quota: the quota is never exceeded,
// and what was refused would not have fitted.
func (s suite) quotaEdge(t *testing.T, ctx context.Context) {
	const uploads, limitBytes, limitFiles = 50, 6 * mib, 60
	for round := range 4 {
		random := rand.New(rand.NewPCG(7, uint64(round)))
		one, other, workspace := s.withQuota(limitBytes, limitFiles), s.withQuota(limitBytes, limitFiles), uuid.New()
		var mu sync.Mutex
		var refused [][2]int64 // bytes and files
		start := make(chan struct{})
		g, groupCtx := errgroup.WithContext(ctx)
		for i := range uploads {
			var samples []sample
			size, n := int64(0), 1+random.IntN(3)
			for range n {
				samples = append(samples, newSample(random.IntN(256<<10>>(2*(round%2)))))
				size += int64(len(samples[len(samples)-1].data))
			}
			storage := []suite{one, other}[i%2].Storage
			g.Go(func() error {
				<-start
				_, err := storage.Stage(groupCtx, workspace, newFiles(samples...))
				var full *pendinguploads.QuotaError
				if !errors.As(err, &full) {
					return err
				}
				if full.Used > full.Limit || full.What == "bytes" && full.Used+size <= full.Limit || full.What == "files" && full.Used+int64(n) <= full.Limit {
					t.Errorf("%d bytes in %d files were refused with %v", size, n, full)
				}
				mu.Lock()
				defer mu.Unlock()
				refused = append(refused, [2]int64{size, int64(n)})
				return nil
			})
		}
		close(start)
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		bytes, files := s.usage(t, ctx, workspace)
		if bytes > limitBytes || files > limitFiles {
			t.Errorf("round %d: %d bytes in %d files are staged, the quota is %d and %d", round, bytes, files, limitBytes, limitFiles)
		}
		if len(refused) == 0 {
			t.Errorf("round %d: nothing was refused", round)
		}
		for _, r := range refused {
			if bytes+r[0] <= limitBytes && files+r[1] <= limitFiles {
				t.Errorf("round %d: %d bytes in %d files were refused, and would have fitted into what %d bytes in %d files leave", round, r[0], r[1], bytes, files)
			}
		}
		t.Logf("round %d: %d of %d bytes and %d of %d files used, %d of %d uploads refused", round, bytes, limitBytes, files, limitFiles, len(refused), uploads)
	}
}

func (s suite) quotaFills(t *testing.T, ctx context.Context) {
	s = s.withQuota(100, 4)
	workspace, quota := uuid.New(), pendinguploads.QuotaError{What: "bytes", Used: 60, Limit: 100}
	staged := s.stage(t, ctx, workspace, newSamples(10, 50)...)
	s.mustBeFull(t, ctx, workspace, quota, newSamples(41)...)
	s.mustBeFull(t, ctx, workspace, quota, newSamples(20, 21)...)
	staged = append(staged, s.stage(t, ctx, workspace, newSample(40))...) // to the byte
	s.mustBeFull(t, ctx, workspace, pendinguploads.QuotaError{What: "bytes", Used: 100, Limit: 100}, newSample(1))
	s.stage(t, ctx, workspace, newSample(0)) // needs no bytes; the fourth file
	s.mustBeFull(t, ctx, workspace, pendinguploads.QuotaError{What: "files", Used: 4, Limit: 4}, newSample(0))
	s.mustBeFull(t, ctx, workspace, pendinguploads.QuotaError{What: "files", Used: 4, Limit: 4}, newSample(101))
	s.mustHaveRows(t, ctx, workspace, 4)
	s.stage(t, ctx, uuid.New(), newSample(100)) // another workspace has its own quota
	s.stage(t, ctx, workspace)                  // an empty upload always fits

	if first, err := s.Storage.MarkFetched(ctx, workspace, staged[0].ID); err != nil || !first {
		t.Fatalf("MarkFetched: first %t, %v", first, err)
	}
	s.mustBeFull(t, ctx, workspace, pendinguploads.QuotaError{What: "files", Used: 4, Limit: 4}, newSample(1)) // fetched is not acknowledged
	s.ack(t, ctx, staged[0], true)
	s.mustBeFull(t, ctx, workspace, pendinguploads.QuotaError{What: "bytes", Used: 90, Limit: 100}, newSample(11))
	s.stage(t, ctx, workspace, newSample(10))
	s.expire(t, ctx, staged[1])
	s.mustBeFull(t, ctx, workspace, pendinguploads.QuotaError{What: "bytes", Used: 50, Limit: 100}, newSample(51))
	s.stage(t, ctx, workspace, newSample(50))
}

// A running upload counts for the quota. If it fails, its part is free at once.
func (s suite) quotaInFlight(t *testing.T, ctx context.Context) {
	s = s.withQuota(2*mib, 3)
	for name, end := range map[string]struct {
		last func(cancel func()) io.Reader
		want error
	}{
		"staged":      {func(func()) io.Reader { return newSample(1).file().Content }, nil},
		"too short":   {func(func()) io.Reader { return call(func() {}) }, pendinguploads.ErrInvalidFile},
		"reader":      {func(func()) io.Reader { return iotest.ErrReader(errReader) }, errReader},
		"interrupted": {func(cancel func()) io.Reader { return io.MultiReader(call(cancel), newSample(1).file().Content) }, context.Canceled},
	} {
		workspace, goOn, started := uuid.New(), make(chan struct{}), make(chan struct{})
		finish := sync.OnceFunc(func() { close(goOn) })
		defer finish() // also if the test fails early
		flight, cancel := context.WithCancel(ctx)
		file := newSample(mib + 1).file()
		file.Content = io.MultiReader(io.LimitReader(file.Content, mib), call(func() { close(started); <-goOn }), end.last(cancel))
		ended := make(chan error, 1)
		go func() {
			_, err := s.Storage.Stage(flight, workspace, []pendinguploads.NewFile{file})
			ended <- err
		}()
		select {
		case <-started:
		case err := <-ended:
			t.Fatalf("%s: it ended before it was read: %v", name, err)
		}
		s.mustBeFull(t, ctx, workspace, pendinguploads.QuotaError{What: "bytes", Used: mib + 1, Limit: 2 * mib}, newSample(mib))
		s.stage(t, ctx, workspace, newSample(0), newSample(mib-1))
		s.mustBeFull(t, ctx, workspace, pendinguploads.QuotaError{What: "files", Used: 3, Limit: 3}, newSample(0))
		finish()
		if err := <-ended; !errors.Is(err, end.want) {
			t.Fatalf("%s: %v, want %v", name, err, end.want)
		}
		cancel()
		if end.want == nil {
			s.mustBeFull(t, ctx, workspace, pendinguploads.QuotaError{What: "files", Used: 3, Limit: 3}, newSample(0))
		} else {
			s.stage(t, ctx, workspace, newSample(mib+1))
		}
		if bytes, files := s.usage(t, ctx, workspace); bytes != 2*mib || files != 3 {
			t.Errorf("%s: %d bytes in %d files", name, bytes, files)
		}
	}
}

// A replay is not refused for the quota.
func (s suite) quotaAndKeys(t *testing.T, ctx context.Context) {
	s = s.withQuota(10, 1)
	workspace, f := uuid.New(), newSample(10)
	s.mustStageOnce(t, ctx, workspace, "key", false, f)
	s.mustStageOnce(t, ctx, workspace, "key", true, f)
	if _, _, err := s.Storage.StageOnce(ctx, workspace, "another", newFiles(f)); !errors.Is(err, pendinguploads.ErrQuota) {
		t.Errorf("%v, want ErrQuota", err)
	}
	s.ack(t, ctx, s.mustStageOnce(t, ctx, workspace, "key", true, f)[0], true)
	s.mustStageOnce(t, ctx, workspace, "another", false, f) // a refused upload leaves its key free
	s.mustHaveRows(t, ctx, workspace, 2)
}

func (s suite) noQuota(t *testing.T, ctx context.Context) {
	workspace := uuid.New()
	onlyBytes, onlyFiles := s.withQuota(10, 0), s.withQuota(0, 12)
	for range 10 {
		onlyBytes.stage(t, ctx, workspace, newSample(1))
	}
	onlyBytes.mustBeFull(t, ctx, workspace, pendinguploads.QuotaError{What: "bytes", Used: 10, Limit: 10}, newSample(1))
	onlyFiles.stage(t, ctx, workspace, newSamples(mib, 2*mib)...)
	onlyFiles.mustBeFull(t, ctx, workspace, pendinguploads.QuotaError{What: "files", Used: 12, Limit: 12}, newSample(0))
	s.withQuota(0, 0).stage(t, ctx, workspace, newSamples(mib, mib)...)
}
