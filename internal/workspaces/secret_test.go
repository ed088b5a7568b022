package workspaces_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/workspaces"
)

// presented returns the secret that the platform presents to the workspace.
func (f fixture) presented(t *testing.T, id uuid.UUID) string {
	t.Helper()
	w, err := f.GetForPush(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return w.InboundSecret
}

func (f fixture) rotate(t *testing.T, id uuid.UUID, r workspaces.Rotation) string {
	t.Helper()
	before := f.get(t, id).InboundSecret
	secret, err := f.Rotate(t.Context(), id, r)
	if err != nil || secret == "" || secret == before || f.get(t, id).InboundSecret != secret {
		t.Fatalf("rotated %q to %q, %v; want a new one, which is stored", before, secret, err)
	}
	return secret
}

func (f fixture) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	if _, err := f.db.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatal(err)
	}
}

// Each case is what happens after a rotation by the operator, and which secret is presented then. Planted: the new one
// presented at once; the old one for ever; a registration or heartbeat of the operator taken for one of the workspace;
// revoke_now, or the workspace's own token, without effect; the first of two rotations taken for what the workspace knows.
func TestRotate_OldSecretIsPresentedUntilTheWorkspaceHasTheNewOne(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	operator := workspaces.Rotation{}
	beat := func(own bool) func(*testing.T, uuid.UUID, string) {
		return func(t *testing.T, id uuid.UUID, _ string) {
			if _, err := f.Heartbeat(t.Context(), id, json.RawMessage(`{}`), own); err != nil {
				t.Fatal(err)
			}
		}
	}
	register := func(t *testing.T, id uuid.UUID, bearer string) {
		r := registration(id, bearer)
		r.Mode, r.URL = workspaces.Push, goodURL
		if w, _, err := f.Register(t.Context(), r); err != nil || w.InboundSecret != f.get(t, id).InboundSecret {
			t.Fatalf("%+v, %v; want the new secret", w, err)
		}
	}
	later := func(t *testing.T, id uuid.UUID, _ string) {
		f.exec(t, "UPDATE workspaces SET previous_secret_until = previous_secret_until - interval '10 minutes' WHERE id = $1", id)
	}
	rotate := func(r workspaces.Rotation) func(*testing.T, uuid.UUID, string) {
		return func(t *testing.T, id uuid.UUID, _ string) { f.rotate(t, id, r) }
	}
	for name, test := range map[string]struct {
		then []func(t *testing.T, id uuid.UUID, bearer string)
		want string // old, new, or none
	}{
		"nothing":                       {nil, "old"},
		"own heartbeat":                 {[]func(*testing.T, uuid.UUID, string){beat(true)}, "new"},
		"the operator's heartbeat":      {[]func(*testing.T, uuid.UUID, string){beat(false)}, "old"},
		"own registration":              {[]func(*testing.T, uuid.UUID, string){register}, "new"},
		"the operator's registration":   {[]func(*testing.T, uuid.UUID, string){func(t *testing.T, id uuid.UUID, _ string) { register(t, id, adminToken) }}, "old"},
		"10 minutes":                    {[]func(*testing.T, uuid.UUID, string){later}, "none"},
		"10 minutes, then a heartbeat":  {[]func(*testing.T, uuid.UUID, string){later, beat(true)}, "new"},
		"another one":                   {[]func(*testing.T, uuid.UUID, string){rotate(operator)}, "old"},
		"another one does not prolong":  {[]func(*testing.T, uuid.UUID, string){later, rotate(operator)}, "none"},
		"revoked":                       {[]func(*testing.T, uuid.UUID, string){rotate(workspaces.Rotation{RevokeNow: true})}, "none"},
		"revoked, another one":          {[]func(*testing.T, uuid.UUID, string){rotate(workspaces.Rotation{RevokeNow: true}), rotate(operator)}, "none"},
		"revoked, then a heartbeat":     {[]func(*testing.T, uuid.UUID, string){rotate(workspaces.Rotation{RevokeNow: true}), beat(true)}, "new"},
		"own rotation":                  {[]func(*testing.T, uuid.UUID, string){rotate(workspaces.Rotation{Delivered: true})}, "new"},
		"own rotation, revoked as well": {[]func(*testing.T, uuid.UUID, string){rotate(workspaces.Rotation{Delivered: true, RevokeNow: true})}, "new"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, bearer := f.create(t, workspaces.Push, goodURL)
			f.rotate(t, w.ID, operator)
			for _, then := range test.then {
				then(t, w.ID, bearer)
			}
			want := map[string]string{"old": w.InboundSecret, "new": f.get(t, w.ID).InboundSecret, "none": ""}[test.want]
			if got := f.presented(t, w.ID); got != want {
				t.Errorf("presented %q, want the %s one, %q", got, test.want, want)
			}
		})
	}
}

func TestRotate_WithoutASecretOrAWorkspace(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	id := f.legacy(t)
	f.rotate(t, id, workspaces.Rotation{})
	if got := f.presented(t, id); got != "" {
		t.Errorf("presented %q, want none: the workspace knows none", got)
	}
	f.remove(t, id)
	for _, id := range []uuid.UUID{id, uuid.New()} {
		_, err := f.Rotate(t.Context(), id, workspaces.Rotation{})
		_, errGet := f.GetForPush(t.Context(), id)
		if !errors.Is(err, workspaces.ErrNotFound) || !errors.Is(errGet, workspaces.ErrNotFound) {
			t.Errorf("%v, %v, want ErrNotFound", err, errGet)
		}
	}
}

// The base schema has no columns for rotation, and all else works. Planted: a statement that names one of them.
func TestRotate_NotOnTheBaseSchema(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec(t, "ALTER TABLE workspaces DROP COLUMN previous_inbound_secret, DROP COLUMN previous_secret_until, DROP COLUMN registered_anonymously")
	f.WithoutRotation()
	r := registration(uuid.New(), "")
	r.Open = true
	w, bearer, err := f.Register(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	r.Bearer = bearer
	if _, _, err := f.Register(t.Context(), r); err != nil {
		t.Error(err)
	}
	if _, err := f.Heartbeat(t.Context(), w.ID, json.RawMessage(`{}`), true); err != nil {
		t.Error(err)
	}
	if got := f.presented(t, w.ID); got != w.InboundSecret {
		t.Errorf("presented %q", got)
	}
	for _, after := range []uuid.UUID{uuid.Nil, f.legacy(t)} {
		if list, _, err := f.List(t.Context(), after, 0); err != nil || len(list) == 0 {
			t.Errorf("list after %s: %v, %v", after, list, err)
		}
	}
	if _, err := f.Rotate(t.Context(), w.ID, workspaces.Rotation{}); !errors.Is(err, workspaces.ErrRotationUnavailable) {
		t.Errorf("%v, want ErrRotationUnavailable", err)
	}
}
