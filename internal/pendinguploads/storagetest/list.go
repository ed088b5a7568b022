package storagetest

import (
	"context"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

func (s suite) listStates(t *testing.T, ctx context.Context) {
	workspace := uuid.New()
	if files := s.list(t, ctx, workspace, pendinguploads.ListQuery{}); len(files) != 0 {
		t.Errorf("a workspace without files has %d", len(files))
	}
	staged := s.stage(t, ctx, workspace, newSamples(0, 1, 2, mib+1, 4, 5)...)
	for _, i := range []int{1, 3} {
		if _, err := s.Storage.MarkFetched(ctx, workspace, staged[i].ID); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range []int{2, 3, 5} {
		s.ack(t, ctx, staged[i], true)
	}
	for _, i := range []int{4, 5} { // one unacked, one acked
		s.expire(t, ctx, staged[i])
	}
	wantState := []pendinguploads.State{"staged", "fetched", "acked", "acked", "", "acked"}
	for _, c := range []struct {
		filter pendinguploads.Filter
		want   []int
	}{
		{pendinguploads.OnlyUnacked, []int{0, 1}},
		{pendinguploads.OnlyAcked, []int{2, 3, 5}},
		{pendinguploads.All, []int{0, 1, 2, 3, 5}},
	} {
		var got []int
		for _, f := range s.list(t, ctx, workspace, pendinguploads.ListQuery{Filter: c.filter}) {
			i := slices.IndexFunc(staged, func(g pendinguploads.File) bool { return g.ID == f.ID })
			got = append(got, i)
			if i < 0 || f.State() != wantState[i] || show(f) != show(s.get(t, ctx, f)) {
				t.Errorf("filter %d lists %s in state %s", c.filter, show(f), f.State())
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("filter %d lists files %v, want %v", c.filter, got, c.want)
		}
	}
}

func (s suite) listPages(t *testing.T, ctx context.Context) {
	workspace := uuid.New()
	s.stage(t, ctx, uuid.New(), newSamples(1, 2)...) // of another workspace, not to be listed
	staged := append(s.stage(t, ctx, workspace, newSamples(3, 2, 1)...), s.stage(t, ctx, workspace, newSamples(0, 9, 8, 7)...)...)
	var want []uuid.UUID
	for i, f := range staged {
		if i == 2 || i == 5 {
			s.ack(t, ctx, f, true)
		}
		want = append(want, f.ID)
	}
	for limit := 1; limit <= len(staged)+1; limit++ {
		q := pendinguploads.ListQuery{Filter: pendinguploads.All, Limit: limit}
		var got []uuid.UUID
		for {
			page := s.list(t, ctx, workspace, q)
			if len(page) > limit {
				t.Fatalf("a page of %d files, limit %d", len(page), limit)
			}
			for _, f := range page {
				got = append(got, f.ID)
			}
			if len(page) < limit || len(got) > len(want) {
				break
			}
			q.After = uuid.NullUUID{UUID: page[len(page)-1].ID, Valid: true}
		}
		if !slices.Equal(got, want) {
			t.Errorf("pages of %d list %v, want %v", limit, got, want)
		}
	}
	// The file to go on after need not itself be selected.
	q := pendinguploads.ListQuery{After: uuid.NullUUID{UUID: staged[2].ID, Valid: true}, Limit: 2}
	if got := s.list(t, ctx, workspace, q); len(got) != 2 || got[0].ID != want[3] || got[1].ID != want[4] {
		t.Errorf("unacked files after an acked one: %v", got)
	}
}

func (s suite) listBounds(t *testing.T, ctx context.Context) {
	workspace := uuid.New()
	s.stage(t, ctx, workspace, newSamples(make([]int, pendinguploads.MaxListLimit+1)...)...)
	for limit, want := range map[int]int{
		-1:                              pendinguploads.DefaultListLimit,
		0:                               pendinguploads.DefaultListLimit,
		1:                               1,
		pendinguploads.MaxListLimit:     pendinguploads.MaxListLimit,
		pendinguploads.MaxListLimit + 1: pendinguploads.MaxListLimit,
	} {
		if got := s.list(t, ctx, workspace, pendinguploads.ListQuery{Limit: limit}); len(got) != want {
			t.Errorf("limit %d lists %d files, want %d", limit, len(got), want)
		}
	}
}
