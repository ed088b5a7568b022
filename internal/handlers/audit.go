package handlers

import (
	"log/slog"
	"sync/atomic"

	"github.com/gin-gonic/gin"
	"golang.org/x/time/rate"

	"github.com/molecule-ai/platform/internal/wsauth"
)

// The audit trail is the log lines with "audit":true: what was done to files, workspaces and
// tokens, by whom (caller, token_id), to what (workspace_id, file_id), when (time) and from where
// (client_ip). They are written after it was done.

// audit writes one line of it.
func audit(c *gin.Context, event string, attrs ...any) {
	logger(c).InfoContext(c, event, append(attrs, auditFields(c)...)...)
}

// auditAs is audit where no guard has found out who the caller is.
func auditAs(c *gin.Context, caller wsauth.Caller, event string, attrs ...any) {
	callerAttrs := callerFields(caller)
	if callerAttrs == nil {
		callerAttrs = []any{"caller", "anonymous"}
	}
	attrs = append(attrs, "audit", true, "client_ip", c.ClientIP())
	logger(c).InfoContext(c, event, append(attrs, callerAttrs...)...)
}

// auditFields are what makes a line of the request one of the audit trail.
func auditFields(c *gin.Context) []any {
	fields := []any{"audit", true, "client_ip", c.ClientIP()}
	if callerFields(wsauth.CallerOf(c)) == nil {
		fields = append(fields, "caller", "anonymous")
	}
	return fields
}

const authFailureLimitKey = "handlers.auth_failure_limit"

// How many refused authentications are logged: a few at once, then one every other second. Who
// guesses tokens must not fill the disk, nor hide what else happens.
const (
	authFailureBurst = 20
	authFailureRate  = rate.Limit(0.5)
)

// authFailureLimit bounds the lines about requests whose token was refused.
type authFailureLimit struct {
	limit   *rate.Limiter
	skipped atomic.Int64
}

func newAuthFailureLimit() *authFailureLimit {
	return &authFailureLimit{limit: rate.NewLimiter(authFailureRate, authFailureBurst)}
}

// allow reports whether there is to be a line about this one, and how many before it had none.
func (s *authFailureLimit) allow() (skipped int64, ok bool) {
	if s == nil {
		return 0, true
	}
	if !s.limit.Allow() {
		s.skipped.Add(1)
		return 0, false
	}
	return s.skipped.Swap(0), true
}

// logAuthFailure logs that a token was refused, unless too many were.
func logAuthFailure(c *gin.Context, log *slog.Logger) {
	s, _ := c.Value(authFailureLimitKey).(*authFailureLimit)
	skipped, ok := s.allow()
	if !ok {
		log.DebugContext(c, "refused")
		return
	}
	fields := auditFields(c)
	if workspace, err := wsauth.ParseUUID(c.Param("id")); err == nil {
		fields = append(fields, "workspace_id", workspace)
	}
	if skipped > 0 {
		fields = append(fields, "skipped", skipped)
	}
	log.InfoContext(c, "refused", fields...)
}
