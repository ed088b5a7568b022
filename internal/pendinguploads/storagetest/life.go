package storagetest

import (
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

func (s suite) ackTwice(t *testing.T, ctx context.Context) {
	want, f := s.stageOne(t, ctx, uuid.New(), 10)
	s.ack(t, ctx, f, true)
	acked := s.get(t, ctx, f)
	if acked.AckedAt == nil || acked.State() != pendinguploads.Acked {
		t.Fatalf("after Ack: %s", show(acked))
	}
	s.ack(t, ctx, f, false)
	s.ack(t, ctx, f, false)
	if again := s.get(t, ctx, f); show(again) != show(acked) {
		t.Errorf("acknowledging again made\n%s of\n%s", show(again), show(acked))
	}
	s.mustRead(t, ctx, f, want)
}

func (s suite) ackedStaysReadable(t *testing.T, ctx context.Context) {
	want, f := s.stageOne(t, ctx, uuid.New(), mib+1)
	s.ack(t, ctx, f, true)
	s.expire(t, ctx, f)
	s.mustRead(t, ctx, f, want)
	s.ack(t, ctx, f, false)
	if listed := s.list(t, ctx, f.Workspace, pendinguploads.ListQuery{Filter: pendinguploads.OnlyAcked}); len(listed) != 1 {
		t.Errorf("%d files listed", len(listed))
	}
	if first, err := s.Storage.MarkFetched(ctx, f.Workspace, f.ID); err != nil || !first {
		t.Errorf("MarkFetched: first %t, %v", first, err)
	}
}

func (s suite) expired(t *testing.T, ctx context.Context) {
	_, f := s.stageOne(t, ctx, uuid.New(), 10)
	s.expire(t, ctx, f)
	s.mustBeMissing(t, ctx, f.Workspace, f.ID)

	_, f = s.stageOne(t, ctx, uuid.New(), 10)
	if first, err := s.Storage.MarkFetched(ctx, f.Workspace, f.ID); err != nil || !first {
		t.Fatalf("MarkFetched: first %t, %v", first, err)
	}
	s.expire(t, ctx, f) // fetched is not acknowledged
	s.mustBeMissing(t, ctx, f.Workspace, f.ID)
}

func (s suite) expire(t *testing.T, ctx context.Context, f pendinguploads.File) {
	t.Helper()
	if err := s.Expire(ctx, f.ID); err != nil {
		t.Fatalf("expire: %v", err)
	}
}

func (s suite) swept(t *testing.T, ctx context.Context) {
	workspace := uuid.New()
	s.mustBeMissing(t, ctx, workspace, uuid.New()) // never existed
	staged := s.stage(t, ctx, workspace, newSamples(0, mib+1, 20)...)
	s.ack(t, ctx, staged[0], true)
	for _, f := range staged[:2] {
		for range 2 { // two sweeps may pick the same file
			if err := s.Delete(ctx, f.ID); err != nil {
				t.Fatal(err)
			}
		}
		s.mustBeMissing(t, ctx, workspace, f.ID)
	}
	s.mustRead(t, ctx, staged[2], newSample(20))
}

// Every call is made by the other workspace, for an acknowledged file and another; afterwards the file is
// unchanged.
func (s suite) isolation(t *testing.T, ctx context.Context) {
	owner, other := uuid.New(), uuid.New()
	samples := newSamples(10, mib+1, 20)
	staged := s.stage(t, ctx, owner, samples...)
	s.stage(t, ctx, other, samples[0])
	s.ack(t, ctx, staged[1], true)
	for i, f := range staged {
		before := s.get(t, ctx, f)
		s.mustBeMissing(t, ctx, other, f.ID)
		s.mustBeMissing(t, ctx, uuid.Nil, f.ID)
		if after := s.get(t, ctx, f); show(after) != show(before) {
			t.Errorf("another workspace made\n%s of\n%s", show(after), show(before))
		}
		s.mustRead(t, ctx, f, samples[i])
	}
	for workspace, want := range map[uuid.UUID]int{owner: 3, other: 1} {
		if files := s.list(t, ctx, workspace, pendinguploads.ListQuery{Filter: pendinguploads.All}); len(files) != want {
			t.Errorf("%d files listed, want %d", len(files), want)
		}
		if rows, err := s.Inbox(ctx, workspace); err != nil || len(rows) != want {
			t.Errorf("%d inbox rows, %v, want %d", len(rows), err, want)
		}
	}
}

func (s suite) markFetched(t *testing.T, ctx context.Context) {
	_, f := s.stageOne(t, ctx, uuid.New(), 10)
	for i := range 3 {
		if first, err := s.Storage.MarkFetched(ctx, f.Workspace, f.ID); err != nil || first != (i == 0) {
			t.Fatalf("MarkFetched, call %d: first %t, %v", i+1, first, err)
		}
		got := s.get(t, ctx, f)
		if got.FetchedAt == nil || got.State() != pendinguploads.Fetched {
			t.Fatalf("after MarkFetched: %s", show(got))
		}
		if f.FetchedAt != nil && !f.FetchedAt.Equal(*got.FetchedAt) {
			t.Fatalf("call %d moved fetched_at from %s to %s", i+1, f.FetchedAt, got.FetchedAt)
		}
		f = got
	}
}

// A call whose context has ended must not report that the file is gone: the caller would not try again.
func (s suite) cancelledCalls(t *testing.T, ctx context.Context) {
	want, f := s.stageOne(t, ctx, uuid.New(), 10)
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	_, _, openErr := s.Storage.Open(cancelled, f.Workspace, f.ID)
	_, getErr := s.Storage.Get(cancelled, f.Workspace, f.ID)
	_, _, ackErr := s.Storage.Ack(cancelled, f.Workspace, f.ID)
	_, fetchedErr := s.Storage.MarkFetched(cancelled, f.Workspace, f.ID)
	_, listErr := s.Storage.List(cancelled, f.Workspace, pendinguploads.ListQuery{})
	for call, err := range map[string]error{"Open": openErr, "Get": getErr, "Ack": ackErr, "MarkFetched": fetchedErr, "List": listErr} {
		if !errors.Is(err, context.Canceled) || errors.Is(err, pendinguploads.ErrNotFound) {
			t.Errorf("%s: %v, want the context's error", call, err)
		}
	}
	if got := s.get(t, ctx, f); show(got) != show(f) {
		t.Errorf("calls that failed made\n%s of\n%s", show(got), show(f))
	}
	s.mustRead(t, ctx, f, want)
}
