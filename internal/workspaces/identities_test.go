package workspaces_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// Each case is something that happened to an anonymous registration before it was 8 days old. Planted: each condition of
// the sweep left out.
func TestSweepIdentities_AnonymousRegistrationsThatNobodyUsed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const old = "UPDATE workspaces SET created_at = now() - interval '8 days' WHERE id = $1"
	kept := map[string]uuid.UUID{}
	anonymous := func() uuid.UUID {
		r := registration(uuid.New(), "")
		r.Open = true
		if _, _, err := f.Register(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		return r.ID
	}
	for name, happened := range map[string]func(uuid.UUID){
		"a request": func(id uuid.UUID) {
			f.exec(t, "UPDATE workspace_tokens SET last_used_at = now() WHERE workspace_id = $1", id)
		},
		"a row":        func(id uuid.UUID) { f.exec(t, "INSERT INTO activity_counters VALUES ($1, 1)", id) },
		"a second key": func(id uuid.UUID) { _, _, _ = f.Mint(t.Context(), id) },
		"a file": func(id uuid.UUID) {
			f.exec(t, "INSERT INTO pending_uploads (workspace_id, content, filename, mimetype, size_bytes, sha256) VALUES ($1, '', 'f', 't/p', 0, sha256(''))", id)
		},
		"a heartbeat": func(id uuid.UUID) { _, _ = f.Heartbeat(t.Context(), id, json.RawMessage(`{}`), true) },
	} {
		id := anonymous()
		happened(id)
		f.exec(t, old, id)
		kept[name] = id
	}
	kept["young"] = anonymous()
	created, _ := f.create(t, workspaces.Poll, "")
	kept["made by the operator"] = created.ID
	kept["legacy"] = f.legacy(t)
	f.exec(t, old, kept["made by the operator"])
	f.exec(t, old, kept["legacy"])
	unused := anonymous()
	f.exec(t, old, unused)

	if n, err := f.SweepableIdentities(t.Context()); n != 1 || err != nil {
		t.Errorf("%d would be swept, %v; want 1", n, err)
	}
	if n, more, err := f.SweepIdentities(t.Context()); n != 1 || more || err != nil {
		t.Errorf("swept %d, more %t, %v; want 1", n, more, err)
	}
	if w, err := f.Get(t.Context(), unused); !errors.Is(err, workspaces.ErrNotFound) {
		t.Errorf("unused: %+v, %v, want it swept", w, err)
	}
	for name, id := range kept {
		if _, err := f.Get(t.Context(), id); err != nil {
			t.Errorf("%s: %v, want it kept", name, err)
		}
	}
}

// Planted: a young one swept; the tombstone deleted; the id given away with its last token.
func TestSweepIdentities_OldTombstonesAndRevokedTokens(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	w, bearer := f.create(t, workspaces.Poll, "")
	gone, _ := f.create(t, workspaces.Poll, "")
	f.remove(t, gone.ID)
	f.revokeAll(t, w.ID)
	for i, want := range []int{0, 2} {
		days := 29 + 2*i
		f.exec(t, "UPDATE workspaces SET removed_at = now() - $2 * interval '1 day' WHERE id = $1", gone.ID, days)
		f.exec(t, "UPDATE workspace_tokens SET revoked_at = now() - $2 * interval '1 day' WHERE workspace_id = $1", w.ID, days)
		if n, err := f.SweepableIdentities(t.Context()); n != want || err != nil {
			t.Errorf("%d days: %d would be swept, %v; want %d", days, n, err, want)
		}
	}
	if n, _, err := f.SweepIdentities(t.Context()); n != 2 || err != nil {
		t.Errorf("swept %d, %v; want 2", n, err)
	}
	var bare bool
	const query = "SELECT platform_inbound_secret IS NULL AND agent_card IS NULL AND status = 'removed' FROM workspaces WHERE id = $1"
	if err := f.db.QueryRowContext(t.Context(), query, gone.ID).Scan(&bare); err != nil || !bare {
		t.Errorf("tombstone: bare %t, %v", bare, err)
	}
	r := registration(w.ID, bearer)
	r.Open = true
	if _, _, err := f.Register(t.Context(), r); !errors.Is(err, wsauth.ErrUnauthorized) {
		t.Errorf("with a revoked token that was swept: %v, want ErrUnauthorized", err)
	}
}
