package handlers

import (
	"log/slog"
	"sync/atomic"

	"github.com/gin-gonic/gin"
	"golang.org/x/time/rate"

	"github.com/molecule-ai/platform/internal/wsauth"
)

// The audit trail is the log lines with "audit":true. A line says what was done to a file, workspace or
// token (msg, workspace_id, file_id), by whom (caller, token_id), when (time) and from where (client_ip).
// It is written after the operation succeeded.

// audit writes one line of the audit trail.
func audit(c *gin.Context, event string, attrs ...any) {
	logger(c).InfoContext(c, event, append(attrs, auditFields(c)...)...)
}

// auditAs is audit for routes without a guard, where the handler has authenticated the caller.
func auditAs(c *gin.Context, caller wsauth.Caller, event string, attrs ...any) {
	callerAttrs := callerFields(caller)
	if callerAttrs == nil {
		callerAttrs = []any{"caller", "anonymous"}
	}
	attrs = append(attrs, "audit", true, "client_ip", c.ClientIP())
	logger(c).InfoContext(c, event, append(attrs, callerAttrs...)...)
}

// auditFields returns the fields that make a log line of the request part of the audit trail.
func auditFields(c *gin.Context) []any {
	fields := []any{"audit", true, "client_ip", c.ClientIP()}
	if callerFields(wsauth.CallerOf(c)) == nil {
		fields = append(fields, "caller", "anonymous")
	}
	return fields
}

const authFailureLimitKey = "handlers.auth_failure_limit"

// The rate at which refused tokens are logged: a burst, then one every 2 s. A client that guesses tokens
// must not fill the disk or drown other lines.
const (
	authFailureBurst = 20
	authFailureRate  = rate.Limit(0.5)
)

// authFailureLimit limits the rate of log lines about refused tokens.
type authFailureLimit struct {
	limit   *rate.Limiter
	skipped atomic.Int64
}

func newAuthFailureLimit() *authFailureLimit {
	return &authFailureLimit{limit: rate.NewLimiter(authFailureRate, authFailureBurst)}
}

// allow reports whether to log this refusal, and how many refusals since the last line were not logged.
func (l *authFailureLimit) allow() (skipped int64, ok bool) {
	if l == nil {
		return 0, true
	}
	if !l.limit.Allow() {
		l.skipped.Add(1)
		return 0, false
	}
	return l.skipped.Swap(0), true
}

// logAuthFailure logs that a token was refused, unless the rate limit is exceeded.
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
