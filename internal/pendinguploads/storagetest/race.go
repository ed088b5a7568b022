package storagetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

const (
	ackers   = 8
	fetchers = 4
	deleters = 3
)

func (s suite) oneFirst(t *testing.T, ctx context.Context) {
	for range 10 {
		_, f := s.stageOne(t, ctx, uuid.New(), 10)
		var acked, fetched atomic.Int32
		start := make(chan struct{})
		g, ctx := errgroup.WithContext(ctx)
		at := func(n int, first *atomic.Int32, call func(ctx context.Context, workspace, id uuid.UUID) (bool, error)) {
			for range n {
				g.Go(func() error {
					<-start
					ok, err := call(ctx, f.Workspace, f.ID)
					if ok {
						first.Add(1)
					}
					return err
				})
			}
		}
		at(ackers, &acked, func(ctx context.Context, workspace, id uuid.UUID) (bool, error) {
			_, first, err := s.Storage.Ack(ctx, workspace, id)
			return first, err
		})
		at(fetchers, &fetched, s.Storage.MarkFetched)
		close(start)
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if acked.Load() != 1 || fetched.Load() != 1 {
			t.Fatalf("%d acks and %d fetches were the first, want 1 each", acked.Load(), fetched.Load())
		}
	}
}

// In each round the sweep starts a little later, after 0, 1, 2 … of the acknowledgements, so that it meets
// every state.
func (s suite) race(t *testing.T, ctx context.Context) {
	for round := range 2 * (ackers + 1) {
		want, f := s.stageOne(t, ctx, uuid.New(), 2*mib+1)
		var acks, firsts atomic.Int32
		start, sweep := make(chan struct{}), make(chan struct{})
		sweepAfter := int32(round % (ackers + 1))
		if sweepAfter == 0 {
			sweep = start
		}
		g, ctx := errgroup.WithContext(ctx)
		for range ackers {
			g.Go(func() error {
				<-start
				_, first, err := s.Storage.Ack(ctx, f.Workspace, f.ID)
				if first {
					firsts.Add(1)
				}
				if acks.Add(1) == sweepAfter {
					close(sweep)
				}
				return vanished(err)
			})
		}
		for range fetchers {
			g.Go(func() error {
				<-start
				if err := s.fetch(ctx, f, want); err != nil {
					return vanished(err)
				}
				_, err := s.Storage.MarkFetched(ctx, f.Workspace, f.ID)
				return err
			})
		}
		for range deleters {
			g.Go(func() error {
				<-sweep
				return s.Delete(ctx, f.ID)
			})
		}
		close(start)
		if err := g.Wait(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if n := firsts.Load(); n > 1 || sweepAfter > 0 && n == 0 {
			t.Errorf("round %d, swept after %d acks: %d were the first", round, sweepAfter, n)
		}
	}
}

// fetch reads the file like a poller: it returns an error unless all bytes are right.
func (s suite) fetch(ctx context.Context, f pendinguploads.File, want sample) error {
	_, content, err := s.Storage.Open(ctx, f.Workspace, f.ID)
	if err != nil {
		return err
	}
	defer content.Close()
	got, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want.data) {
		return errors.New("a file was read to a clean end and is not what was staged")
	}
	return nil
}

// vanished drops the errors that are allowed when a file is swept.
func vanished(err error) error {
	if errors.Is(err, pendinguploads.ErrNotFound) || errors.Is(err, pendinguploads.ErrTruncated) {
		return nil
	}
	return err
}
