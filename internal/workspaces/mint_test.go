package workspaces_test

import (
	"errors"
	"testing"

	"github.com/molecule-ai/platform/internal/wsauth"
)

// A list of tokens is held in memory, so their number is limited. Planted: no limit; revoked tokens
// counted.
func TestMint_LimitsLiveTokens(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	w, _ := f.create(t, "poll", "")
	f.revokeAll(t, w.ID)
	for n := range wsauth.MaxTokens {
		if _, _, err := f.Mint(t.Context(), w.ID); err != nil {
			t.Fatalf("token %d: %v", n+1, err)
		}
	}
	if _, _, err := f.Mint(t.Context(), w.ID); !errors.Is(err, wsauth.ErrTooManyTokens) {
		t.Errorf("one more: %v, want ErrTooManyTokens", err)
	}
	f.revokeAll(t, w.ID)
	if _, _, err := f.Mint(t.Context(), w.ID); err != nil {
		t.Errorf("after revoking them: %v", err)
	}
}
