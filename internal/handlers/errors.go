package handlers

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/gin-gonic/gin"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/events"
	"github.com/molecule-ai/platform/internal/forward"
	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/spool"
	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// problems is what each domain error is to a client. The first that matches counts; what
// is not in it is a 500 with a text that says nothing.
var problems = []struct {
	err     error
	status  int
	code    string
	message string
}{
	{wsauth.ErrUnauthorized, http.StatusUnauthorized, "unauthorized", "missing or invalid token for this workspace"},
	{wsauth.ErrUnavailable, http.StatusServiceUnavailable, "platform_unavailable", "platform datastore unavailable — retry shortly"},
	{wsauth.ErrInvalidWorkspaceID, http.StatusBadRequest, "invalid_workspace_id", "invalid workspace ID"},
	{wsauth.ErrTooManyTokens, http.StatusConflict, "too_many_tokens", "the workspace has 100 live tokens; revoke one first"},
	{wsauth.ErrTokenNotFound, http.StatusNotFound, "token_not_found", "token not found or already revoked"},

	{workspaces.ErrNotFound, http.StatusNotFound, "workspace_not_found", "workspace not found"},
	{workspaces.ErrRemoved, http.StatusGone, "workspace_removed", "workspace was removed; register under a new id"},
	{workspaces.ErrRegistrationClosed, http.StatusForbidden, "registration_closed",
		"registration is closed; ask the operator to create the workspace and give you its token"},
	{workspaces.ErrInvalidMode, http.StatusBadRequest, "invalid_delivery_mode", `delivery_mode must be "push" or "poll"`},
	{workspaces.ErrURLRequired, http.StatusBadRequest, "url_required", `delivery_mode "push" needs a url; use "poll" if the workspace has none`},

	{forward.ErrAnswerTooLarge, http.StatusBadGateway, "workspace_unreachable", "workspace unreachable"},
	{forward.ErrUnreachable, http.StatusBadGateway, "workspace_unreachable", "workspace unreachable"},
	// What was wrong with an address that could not be called is nothing to the caller; these
	// two are for who registers it.
	{forward.ErrBadURL, http.StatusBadRequest, "invalid_url", "url must be absolute, http or https, without user name or password"},
	{forward.ErrDenied, http.StatusBadRequest, "url_not_allowed",
		"url points to a private or reserved address, which this platform does not call"},

	{activity.ErrCursorGone, http.StatusGone, "cursor_gone",
		"since_id is unknown or was pruned; omit since_id to start again, with order=asc from the oldest row"},

	{events.ErrGone, http.StatusGone, "events_gone",
		"the events after Last-Event-ID cannot be told any more; connect without it and read the lists again"},
	{events.ErrInvalidPosition, http.StatusBadRequest, "invalid_last_event_id", "Last-Event-ID must be the id of an event of this stream"},

	{pendinguploads.ErrNotFound, http.StatusNotFound, "pending_upload_not_found", "pending upload not found, expired, or already acked"},
	{pendinguploads.ErrTruncated, http.StatusNotFound, "pending_upload_not_found", "pending upload not found, expired, or already acked"},
	{pendinguploads.ErrTooLarge, http.StatusRequestEntityTooLarge, "file_too_large", "file exceeds per-file cap"},
	{pendinguploads.ErrBatchTooLarge, http.StatusRequestEntityTooLarge, "request_too_large", "request body exceeds limit"},
	{pendinguploads.ErrQuota, http.StatusInsufficientStorage, "quota_exceeded", "the workspace's quota is used up; it has to fetch and acknowledge files first"},
	{pendinguploads.ErrKeyReused, http.StatusUnprocessableEntity, "idempotency_key_reused", "this Idempotency-Key was used for other files; use a new one"},
	{pendinguploads.ErrKeyInUse, http.StatusConflict, "idempotency_key_in_use", "the upload with this Idempotency-Key is still running; retry shortly"},
	{spool.ErrTempFile, http.StatusInternalServerError, "stage_failed", "could not stage file"},
	{pendinguploads.ErrInvalidFile, http.StatusInternalServerError, "stage_failed", "could not stage file"},

	{errSlowBody, http.StatusRequestTimeout, "body_too_slow", "request body arrived too slowly; try again on a better connection"},
}

// A refusal is an error that is made for the client: its status, code, sentence and
// further fields, and the cause for the log.
type refusal struct {
	status     int
	code       string
	message    string
	fields     map[string]any
	retryAfter int // seconds; 0: no header
	cause      error
}

func refuse(status int, code, message string) *refusal {
	return &refusal{status: status, code: code, message: message}
}

func (r *refusal) with(field string, value any) *refusal {
	if r.fields == nil {
		r.fields = map[string]any{}
	}
	r.fields[field] = value
	return r
}

func (r *refusal) because(err error) *refusal {
	r.cause = err
	return r
}

func (r *refusal) after(seconds int) *refusal {
	r.retryAfter = seconds
	return r
}

// Error implements error.
func (r *refusal) Error() string {
	if r.cause != nil {
		return r.message + ": " + r.cause.Error()
	}
	return r.message
}

// Unwrap returns the cause.
func (r *refusal) Unwrap() error { return r.cause }

// refusalFor translates an error by the table.
func refusalFor(err error) *refusal {
	var r *refusal
	if errors.As(err, &r) {
		return r
	}
	for _, p := range problems {
		if errors.Is(err, p.err) {
			return refuse(p.status, p.code, p.message).because(err)
		}
	}
	return refuse(http.StatusInternalServerError, "internal", "internal error; it has been logged").because(err)
}

// cutByClient reports whether there is an error because nobody waits for the answer any more.
func cutByClient(c *gin.Context, err error) bool {
	// To net/http a read that fails for slowness is a client who has gone.
	return errors.Is(c.Request.Context().Err(), context.Canceled) && !errors.Is(err, errSlowBody)
}

// codeFor is what an error is counted as.
func codeFor(c *gin.Context, err error) string {
	if cutByClient(c, err) {
		return "cut_by_client"
	}
	return refusalFor(err).code
}

// Render answers with err, unless the answer has begun already, once the client has finished
// sending, and logs it: what the
// platform could not do as an error, what it would not do as a refusal.
func Render(c *gin.Context, err error) {
	r := refusalFor(err)
	meter(c).Refused(c.FullPath(), codeFor(c, err))
	log := logger(c).With("status", r.status, "code", r.code, "error", err.Error())
	for field, value := range r.fields {
		log = log.With(field, value)
	}
	switch {
	case cutByClient(c, err):
		log.InfoContext(c, "request cut by the client")
	case r.status >= http.StatusInternalServerError && r.status != http.StatusInsufficientStorage: // a quota is a will
		log.ErrorContext(c, "failed")
	case r.status == http.StatusUnauthorized:
		refusedStranger(c, log)
	default:
		log.InfoContext(c, "refused")
	}
	if c.Writer.Written() {
		return
	}
	settle(c) // nobody else has to wait until this client has finished sending
	drain(c)
	body := gin.H{"error": r.message, "code": r.code}
	for field, value := range r.fields {
		body[field] = value
	}
	if r.retryAfter > 0 {
		c.Header("Retry-After", strconv.Itoa(r.retryAfter))
	}
	if r.status == http.StatusUnauthorized {
		c.Header("WWW-Authenticate", "Bearer")
	}
	c.PureJSON(r.status, body)
}
