package wsauth_test

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/wsauth"
)

// While look-ups of invented tokens hang, they hold four connections, however many there are; a token in use has
// another one. Planted: no bound; a token that is in use waits with the others.
func TestIdentify_InventedTokensWaitForEachOther(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	workspace := f.workspace(t)
	bearer, _ := f.issue(t, workspace)
	lock, err := f.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback() // after the first it does nothing
	if _, err := lock.Exec("LOCK TABLE workspace_tokens"); err != nil {
		t.Fatal(err)
	}
	idle := f.db.Stats().InUse
	inUse := func(n int) {
		t.Helper()
		for begun := time.Now(); f.db.Stats().InUse-idle != n; time.Sleep(time.Millisecond) {
			if time.Since(begun) > testTimeout/10 {
				t.Fatalf("%d connections in use, want %d", f.db.Stats().InUse-idle, n)
			}
		}
	}
	var ended sync.WaitGroup
	for range 50 {
		invented := make([]byte, 32)
		rand.Read(invented)
		ended.Go(func() {
			_, err := f.Identify(t.Context(), "mol_ws_"+base64.RawURLEncoding.EncodeToString(invented))
			if !errors.Is(err, wsauth.ErrUnauthorized) {
				t.Errorf("an invented token: %v", err)
			}
		})
	}
	inUse(4)
	ended.Go(func() {
		if caller, err := f.Identify(t.Context(), bearer); err != nil || caller.Workspace != workspace {
			t.Errorf("a token in use: %+v, %v", caller, err)
		}
	})
	inUse(5)
	if err := lock.Rollback(); err != nil {
		t.Fatal(err)
	}
	ended.Wait()
}

func TestIdentify_FindsTheWorkspaceOfAToken(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	workspace, other := f.workspace(t), f.workspace(t)
	bearer, token := f.issue(t, workspace)
	if caller, err := f.Identify(t.Context(), bearer); err != nil || caller != (wsauth.Caller{Workspace: workspace, TokenID: token.ID}) {
		t.Errorf("%+v, %v", caller, err)
	}
	if caller, err := f.Identify(t.Context(), adminToken); err != nil || !caller.Admin {
		t.Errorf("the operator: %+v, %v", caller, err)
	}
	if _, err := f.Authenticate(t.Context(), other, bearer); !errors.Is(err, wsauth.ErrUnauthorized) {
		t.Errorf("another workspace: %v", err)
	}
	for name, end := range map[string]string{
		"revoked": "UPDATE workspace_tokens SET revoked_at = now()",
		"removed": "UPDATE workspace_tokens SET revoked_at = NULL; UPDATE workspaces SET status = 'removed'",
	} {
		f.exec(t, end)
		if _, err := f.Identify(t.Context(), bearer); !errors.Is(err, wsauth.ErrUnauthorized) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
