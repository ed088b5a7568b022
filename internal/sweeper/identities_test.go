package sweeper_test

import (
	"context"
	"errors"
	"testing"
)

// identities finds three batches of two, or fails.
type identities struct {
	left int
	err  error
}

func (i *identities) SweepIdentities(context.Context) (int, bool, error) {
	if i.err != nil {
		return 0, false, i.err
	}
	i.left -= 2
	return 2, i.left > 0, nil
}

func (i *identities) SweepableIdentities(context.Context) (int, error) { return i.left, i.err }

// Planted: one batch only; not counted by Due; their error dropped.
func TestIdentities_AreSweptInBatches(t *testing.T) {
	t.Parallel()
	s, _, _ := watch(t, &fake{})
	ids := &identities{left: 6}
	s.WithIdentities(ids)
	if due, err := s.Due(t.Context()); err != nil || due.Identities != 6 {
		t.Errorf("due %+v, %v, want 6", due, err)
	}
	if r, err := s.RunOnce(t.Context()); err != nil || r.Identities != 6 {
		t.Errorf("swept %+v, %v, want 6", r, err)
	}
	ids.err = errors.New("the identities' disk is on fire")
	_, errDue := s.Due(t.Context())
	if _, err := s.RunOnce(t.Context()); !errors.Is(err, ids.err) || !errors.Is(errDue, ids.err) {
		t.Errorf("%v, %v, want the identities' error", err, errDue)
	}
}
