package workspaces_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

func TestCreate_CreatesTokenAndSecret(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for name, test := range map[string]struct {
		mode     workspaces.Mode
		url      string
		want     error
		wantMode workspaces.Mode
		wantURL  string
	}{
		"poll":                  {workspaces.Poll, "", nil, workspaces.Poll, ""},
		"poll ignores a url":    {workspaces.Poll, badURL, nil, workspaces.Poll, ""},
		"push":                  {workspaces.Push, goodURL, nil, workspaces.Push, goodURL},
		"push, url comes later": {workspaces.Push, "", nil, workspaces.Push, ""},
		"not said":              {"", goodURL, nil, workspaces.Push, goodURL},
		"refused url":           {workspaces.Push, badURL, errBadURL, "", ""},
		"not said, refused url": {"", badURL, errBadURL, "", ""},
		"other mode":            {"pull", "", workspaces.ErrInvalidMode, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, bearer, err := f.Create(t.Context(), name, test.mode, test.url)
			if !errors.Is(err, test.want) {
				t.Fatalf("%v, want %v", err, test.want)
			}
			if test.want != nil {
				if w != (workspaces.Workspace{}) || bearer != "" {
					t.Errorf("a refusal made %+v, token %v", w, bearer != "")
				}
				return
			}
			if w.Name != name || w.Status != "provisioning" || w.Mode != test.wantMode || w.URL != test.wantURL ||
				w.LastHeartbeatAt != nil || w.CreatedAt.IsZero() || f.get(t, w.ID) != w {
				t.Errorf("created %+v, stored %+v", w, f.get(t, w.ID))
			}
			if secret, err := base64.RawURLEncoding.DecodeString(w.InboundSecret); err != nil || len(secret) != 32 {
				t.Errorf("inbound secret %q is not 256 bits", w.InboundSecret)
			}
			if !f.works(t, w.ID, bearer) {
				t.Error("the token does not work")
			}
		})
	}
}

func TestRemove_LeavesATombstone(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	w, bearer := f.create(t, workspaces.Poll, "")
	other, others := f.create(t, workspaces.Poll, "")
	f.remove(t, w.ID)
	if f.works(t, w.ID, bearer) {
		t.Error("a token of a removed workspace works")
	}
	if !f.works(t, other.ID, others) {
		t.Error("a token of another workspace stopped working")
	}
	var removedAt string
	const query = "SELECT removed_at::text FROM workspaces WHERE id = $1 AND status = 'removed'"
	if err := f.db.QueryRowContext(t.Context(), query, w.ID).Scan(&removedAt); err != nil {
		t.Fatal(err)
	}
	f.remove(t, w.ID)
	var again string
	if err := f.db.QueryRowContext(t.Context(), query, w.ID).Scan(&again); err != nil || again != removedAt {
		t.Errorf("removed at %s, then at %s, %v", removedAt, again, err)
	}
	if err := f.Remove(t.Context(), uuid.New()); !errors.Is(err, workspaces.ErrNotFound) {
		t.Errorf("unknown: %v, want ErrNotFound", err)
	}
}

// Operations on removed and unknown workspaces fail with ErrNotFound, and do not restore them.
func TestRemovedAndUnknown_AreNotFound(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	removed, _ := f.create(t, workspaces.Poll, "")
	f.remove(t, removed.ID)
	for name, id := range map[string]uuid.UUID{"removed": removed.ID, "unknown": uuid.New()} {
		_, errGet := f.Get(t.Context(), id)
		_, errBeat := f.Heartbeat(t.Context(), id, json.RawMessage(`{}`), true)
		bearer, _, errMint := f.Mint(t.Context(), id)
		for what, err := range map[string]error{"get": errGet, "heartbeat": errBeat, "mint": errMint} {
			if !errors.Is(err, workspaces.ErrNotFound) {
				t.Errorf("%s, %s: %v, want ErrNotFound", name, what, err)
			}
		}
		if bearer != "" {
			t.Errorf("%s: a token was minted", name)
		}
		if err := f.EnsureSecret(t.Context(), id); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var status string
	if err := f.db.QueryRowContext(t.Context(), "SELECT status FROM workspaces WHERE id = $1", removed.ID).Scan(&status); err != nil || status != "removed" {
		t.Errorf("status %s, %v, want removed", status, err)
	}
}

func TestMint_CreatesAnotherToken(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	w, first := f.create(t, workspaces.Poll, "")
	second, token, err := f.Mint(t.Context(), w.ID)
	if err != nil || !f.works(t, w.ID, first) || !f.works(t, w.ID, second) || first == second {
		t.Fatalf("minted %+v, %v", token, err)
	}
	if err := f.tokens.Revoke(t.Context(), w.ID, token.ID); err != nil || f.works(t, w.ID, second) || !f.works(t, w.ID, first) {
		t.Errorf("the minted token cannot be revoked alone: %v", err)
	}
}

func TestHeartbeat_RecordsTimeAndReport(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	w, _ := f.create(t, workspaces.Poll, "")
	idle, _ := f.create(t, workspaces.Poll, "")
	for _, report := range []string{`{"active_tasks":1}`, `{"active_tasks": 2}`} {
		secret, err := f.Heartbeat(t.Context(), w.ID, json.RawMessage(report), true)
		if err != nil || secret != w.InboundSecret {
			t.Errorf("secret %q, %v, want %q", secret, err, w.InboundSecret)
		}
		var stored string
		var fresh bool
		if err := f.db.QueryRowContext(t.Context(), "SELECT last_heartbeat, last_heartbeat_at > now() - interval '1 minute' "+
			"FROM workspaces WHERE id = $1", w.ID).Scan(&stored, &fresh); err != nil || stored != report || !fresh {
			t.Errorf("stored %s, fresh: %v, %v; want %s", stored, fresh, err, report)
		}
	}
	if got := f.get(t, w.ID); got.Status != "online" || got.LastHeartbeatAt == nil {
		t.Errorf("after a heartbeat: %+v", got)
	}
	if got := f.get(t, idle.ID); got != idle {
		t.Errorf("another workspace's heartbeat changed %+v to %+v", idle, got)
	}
}

// A row without a secret gets one from the first operation that needs it, and keeps it.
func TestSecret_MintedOnceAndKept(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	mints := map[string]func(id uuid.UUID) error{
		"heartbeat": func(id uuid.UUID) error {
			_, err := f.Heartbeat(t.Context(), id, json.RawMessage(`{}`), true)
			return err
		},
		"ensure": func(id uuid.UUID) error { return f.EnsureSecret(t.Context(), id) },
		"register": func(id uuid.UUID) error {
			_, _, err := f.Register(t.Context(), registration(id, adminToken))
			return err
		},
	}
	seen := map[string]bool{}
	for first, mint := range mints {
		id := f.legacy(t)
		if err := mint(id); err != nil {
			t.Fatal(err)
		}
		secret := f.get(t, id).InboundSecret
		if secret == "" || seen[secret] {
			t.Errorf("%s made secret %q", first, secret)
		}
		seen[secret] = true
		for then, mint := range mints {
			if err := mint(id); err != nil {
				t.Fatal(err)
			}
			if got := f.get(t, id).InboundSecret; got != secret {
				t.Errorf("%s, then %s: the secret changed", first, then)
			}
		}
	}
}

func TestDeliveryMode_OfALegacyRowIsPush(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if w := f.get(t, f.legacy(t)); w.Mode != "" || w.DeliveryMode() != workspaces.Push {
		t.Errorf("effective mode of %q is %q", w.Mode, w.DeliveryMode())
	}
}

// A database failure must not be reported as a missing workspace or an unauthorized caller.
func TestFailure_IsNotReportedAsNotFound(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	w, bearer := f.create(t, workspaces.Poll, "")
	f.db.Close()
	_, errGet := f.Get(t.Context(), w.ID)
	_, _, errList := f.List(t.Context(), uuid.Nil, 0)
	_, _, errCreate := f.Create(t.Context(), "x", workspaces.Poll, "")
	_, _, errMint := f.Mint(t.Context(), w.ID)
	_, errBeat := f.Heartbeat(t.Context(), w.ID, json.RawMessage(`{}`), true)
	_, _, errRegister := f.Register(t.Context(), registration(w.ID, bearer))
	for what, err := range map[string]error{
		"get": errGet, "list": errList, "create": errCreate, "mint": errMint, "heartbeat": errBeat, "register": errRegister,
		"remove": f.Remove(t.Context(), w.ID), "secret": f.EnsureSecret(t.Context(), w.ID),
	} {
		if err == nil || errors.Is(err, workspaces.ErrNotFound) || errors.Is(err, wsauth.ErrUnauthorized) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
