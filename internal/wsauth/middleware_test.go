package wsauth_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/wsauth"
)

// A passage is the result of one request at a guard.
type passage struct {
	passed    bool
	refusal   error
	caller    wsauth.Caller
	workspace uuid.UUID
}

// pass sends a request for path through a guard.
func pass(guard func(fail func(*gin.Context, error)) gin.HandlerFunc, path, authorization string) (p passage) {
	engine := gin.New()
	engine.GET("/workspaces/:id", guard(func(_ *gin.Context, err error) { p.refusal = err }), func(c *gin.Context) {
		p.passed, p.caller, p.workspace = true, wsauth.CallerOf(c), wsauth.WorkspaceOf(c)
	})
	request := httptest.NewRequest(http.MethodGet, path, nil)
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	engine.ServeHTTP(httptest.NewRecorder(), request)
	return p
}

func TestRequireWorkspace_AllowsOwnTokenAndOperator(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	workspace := f.workspace(t)
	bearer, token := f.issue(t, workspace)
	path := "/workspaces/" + workspace.String()

	want := passage{passed: true, workspace: workspace, caller: wsauth.Caller{Workspace: workspace, TokenID: token.ID}}
	if got := pass(f.RequireWorkspace, path, "Bearer "+bearer); got != want {
		t.Errorf("own token: %+v, want %+v", got, want)
	}
	want.caller = wsauth.Caller{Admin: true}
	if got := pass(f.RequireWorkspace, path, "bearer "+adminToken); got != want {
		t.Errorf("operator: %+v, want %+v", got, want)
	}
}

func TestRequireWorkspace_RefusesOthers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	workspace, other := f.workspace(t), f.workspace(t)
	bearer, _ := f.issue(t, workspace)
	for name, test := range map[string]struct {
		path, authorization string
		want                error
	}{
		"no token":            {workspace.String(), "", wsauth.ErrUnauthorized},
		"empty token":         {workspace.String(), "Bearer ", wsauth.ErrUnauthorized},
		"another scheme":      {workspace.String(), "Basic " + bearer, wsauth.ErrUnauthorized},
		"another workspace":   {other.String(), "Bearer " + bearer, wsauth.ErrUnauthorized},
		"not a UUID":          {"7", "Bearer " + bearer, wsauth.ErrInvalidWorkspaceID},
		"not a UUID, nobody":  {"7", "", wsauth.ErrInvalidWorkspaceID},
		"UUID in braces":      {"{" + workspace.String() + "}", "Bearer " + adminToken, wsauth.ErrInvalidWorkspaceID},
		"36 characters of -":  {"------------------------------------", "Bearer " + adminToken, wsauth.ErrInvalidWorkspaceID},
		"operator, malformed": {"x", "Bearer " + adminToken, wsauth.ErrInvalidWorkspaceID},
	} {
		if got := pass(f.RequireWorkspace, "/workspaces/"+test.path, test.authorization); got.passed || !errors.Is(got.refusal, test.want) {
			t.Errorf("%s: %+v, want %v", name, got, test.want)
		}
	}
	f.db.Close()
	if got := pass(f.RequireWorkspace, "/workspaces/"+workspace.String(), "Bearer "+bearer); got.passed || !errors.Is(got.refusal, wsauth.ErrUnavailable) {
		t.Errorf("no database: %+v, want ErrUnavailable", got)
	}
}

func TestRequireAdmin_AllowsOnlyTheOperator(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	workspace := f.workspace(t)
	bearer, _ := f.issue(t, workspace)
	path := "/workspaces/" + workspace.String()
	if got := pass(f.RequireAdmin, path, "Bearer "+adminToken); !got.passed || !got.caller.Admin {
		t.Errorf("operator: %+v", got)
	}
	for _, authorization := range []string{"", "Bearer ", "Bearer " + bearer, "Bearer " + adminToken + "x", adminToken, "Basic " + adminToken} {
		if got := pass(f.RequireAdmin, path, authorization); got.passed || !errors.Is(got.refusal, wsauth.ErrUnauthorized) {
			t.Errorf("%q: %+v, want ErrUnauthorized", authorization, got)
		}
	}
}

// A route without a guard must not find a caller.
func TestCallerOf_WithoutAGuardIsZero(t *testing.T) {
	t.Parallel()
	none := func(func(*gin.Context, error)) gin.HandlerFunc { return func(*gin.Context) {} }
	if got := pass(none, "/workspaces/"+uuid.NewString(), "Bearer "+adminToken); got != (passage{passed: true}) {
		t.Errorf("got %+v", got)
	}
}
