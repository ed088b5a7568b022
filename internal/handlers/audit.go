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
func audit(c *gin.Context, what string, about ...any) {
	logger(c).InfoContext(c, what, append(about, auditFields(c)...)...)
}

// auditBy is audit where no guard has found out who the caller is.
func auditBy(c *gin.Context, caller wsauth.Caller, what string, about ...any) {
	who := callerFields(caller)
	if who == nil {
		who = []any{"caller", "anonymous"}
	}
	about = append(about, "audit", true, "client_ip", c.ClientIP())
	logger(c).InfoContext(c, what, append(about, who...)...)
}

// auditFields are what makes a line of the request one of the audit trail.
func auditFields(c *gin.Context) []any {
	fields := []any{"audit", true, "client_ip", c.ClientIP()}
	if callerFields(wsauth.CallerOf(c)) == nil {
		fields = append(fields, "caller", "anonymous")
	}
	return fields
}

const strangersKey = "handlers.strangers"

// How many refused authentications are logged: a few at once, then one every other second. Who
// guesses tokens must not fill the disk, nor hide what else happens.
const (
	strangersAtOnce = 20
	strangersRate   = rate.Limit(0.5)
)

// strangers bounds the lines about requests whose token was refused.
type strangers struct {
	limit   *rate.Limiter
	skipped atomic.Int64
}

func newStrangers() *strangers {
	return &strangers{limit: rate.NewLimiter(strangersRate, strangersAtOnce)}
}

// admit reports whether there is to be a line about this one, and how many before it had none.
func (s *strangers) admit() (skipped int64, ok bool) {
	if s == nil {
		return 0, true
	}
	if !s.limit.Allow() {
		s.skipped.Add(1)
		return 0, false
	}
	return s.skipped.Swap(0), true
}

// refusedStranger logs that a token was refused, unless too many were.
func refusedStranger(c *gin.Context, log *slog.Logger) {
	s, _ := c.Value(strangersKey).(*strangers)
	skipped, ok := s.admit()
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
