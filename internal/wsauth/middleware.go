package wsauth

import (
	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
)

const (
	callerKey    = "wsauth.caller"
	workspaceKey = "wsauth.workspace"
)

// RequireWorkspace lets a request pass if it may act on the workspace named :id in its
// path, and notes both for CallerOf and WorkspaceOf. Otherwise it calls fail with the
// reason, and no later handler runs.
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
	}
}

// RequireAdmin lets a request pass if it is the operator's.
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

// CallerOf returns who sent a request that passed one of the guards; the zero Caller
// otherwise.
func CallerOf(c *gin.Context) Caller {
	caller, _ := c.Value(callerKey).(Caller)
	return caller
}

// WorkspaceOf returns the workspace in the path of a request that passed
// RequireWorkspace.
func WorkspaceOf(c *gin.Context) uuid.UUID {
	workspace, _ := c.Value(workspaceKey).(uuid.UUID)
	return workspace
}

// ParseUUID parses the canonical 36-character form only; uuid.Parse also takes others,
// and one thing should have one name.
func ParseUUID(s string) (uuid.UUID, error) {
	if len(s) != 36 {
		return uuid.UUID{}, ErrInvalidWorkspaceID
	}
	return uuid.Parse(s)
}
