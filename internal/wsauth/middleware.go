package wsauth

import (
	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
)

const (
	callerKey    = "wsauth.caller"
	workspaceKey = "wsauth.workspace"
	tokensKey    = "wsauth.tokens"
)

// RequireWorkspace admits a request that may act on the workspace :id of its path, and stores caller and
// workspace for CallerOf and WorkspaceOf. Otherwise it calls fail with the error and aborts.
func (t *Tokens) RequireWorkspace(fail func(*gin.Context, error)) gin.HandlerFunc {
	return func(c *gin.Context) {
		workspace, err := ParseUUID(c.Param("id"))
		if err != nil {
			fail(c, ErrInvalidWorkspaceID)
			c.Abort()
			return
		}
		caller, err := t.Authenticate(c.Request.Context(), workspace, Bearer(c.GetHeader("Authorization")))
		if err != nil {
			fail(c, err)
			c.Abort()
			return
		}
		c.Set(callerKey, caller)
		c.Set(workspaceKey, workspace)
		c.Set(tokensKey, t)
	}
}

// Recheck authenticates the caller of a request that RequireWorkspace admitted once more. A body may take minutes to
// arrive, and what it asks for must not be done for a token that was revoked meanwhile, or whose workspace was removed.
// The errors are those of Authenticate.
func Recheck(c *gin.Context) error {
	t, ok := c.Value(tokensKey).(*Tokens)
	if !ok {
		return ErrUnauthorized
	}
	_, err := t.Authenticate(c.Request.Context(), WorkspaceOf(c), Bearer(c.GetHeader("Authorization")))
	return err
}

// RequireAdmin admits the operator's requests. Otherwise it calls fail with the error and aborts.
func (t *Tokens) RequireAdmin(fail func(*gin.Context, error)) gin.HandlerFunc {
	return func(c *gin.Context) {
		if !t.IsAdmin(Bearer(c.GetHeader("Authorization"))) {
			fail(c, ErrUnauthorized)
			c.Abort()
			return
		}
		c.Set(callerKey, Caller{Admin: true})
	}
}

// CallerOf returns the caller of a request that one of the guards admitted, the zero Caller otherwise.
func CallerOf(c *gin.Context) Caller {
	caller, _ := c.Value(callerKey).(Caller)
	return caller
}

// WorkspaceOf returns the workspace of a request that RequireWorkspace admitted.
func WorkspaceOf(c *gin.Context) uuid.UUID {
	workspace, _ := c.Value(workspaceKey).(uuid.UUID)
	return workspace
}

// ParseUUID parses the canonical 36-character form only. uuid.Parse accepts other forms, and one id
// would have several spellings.
func ParseUUID(s string) (uuid.UUID, error) {
	if len(s) != 36 {
		return uuid.UUID{}, ErrInvalidWorkspaceID
	}
	return uuid.Parse(s)
}
