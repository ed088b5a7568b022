package handlers

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/gin-gonic/gin"
	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/events"
	"github.com/molecule-ai/platform/internal/fairshare"
	"github.com/molecule-ai/platform/internal/forward"
	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/spool"
	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// errorResponses maps domain errors to answers. The first match applies; an error without a row is a 500
// with a generic sentence.
var errorResponses = []struct {
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
	{workspaces.ErrRotationUnavailable, http.StatusServiceUnavailable, "platform_unavailable", "the platform's database is not up to date; ask the operator to run 'platform migrate up'"},
	{workspaces.ErrInvalidMode, http.StatusBadRequest, "invalid_delivery_mode", `delivery_mode must be "push" or "poll"`},
	{workspaces.ErrURLRequired, http.StatusBadRequest, "url_required", `delivery_mode "push" needs a url; use "poll" if the workspace has none`},

	{forward.ErrAnswerTooLarge, http.StatusBadGateway, "workspace_unreachable", "workspace unreachable"},
	{forward.ErrUnreachable, http.StatusBadGateway, "workspace_unreachable", "workspace unreachable"},
	// These two are for registration. When a call fails they are wrapped in ErrUnreachable, which matches
	// first: the caller must not learn why the platform does not call an address.
	{forward.ErrBadURL, http.StatusBadRequest, "invalid_url", "url must be absolute, http or https, without user name or password"},
	{forward.ErrDenied, http.StatusBadRequest, "url_not_allowed",
		"url points to a private or reserved address, which this platform does not call"},

	{activity.ErrCursorGone, http.StatusGone, "cursor_gone",
		"since_id is unknown or was pruned; omit since_id to start again, with order=asc from the oldest row"},

	{activity.ErrCallRunning, http.StatusConflict, "message_in_progress",
		"the workspace is still being called with this message; send it again later for the answer"},

	{events.ErrGone, http.StatusGone, "events_gone",
		"the events after Last-Event-ID are no longer available; connect without it and read the lists again"},
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

	{fairshare.ErrSaturated, http.StatusServiceUnavailable, "saturated", "the platform is busy; retry shortly"},

	{errSlowBody, http.StatusRequestTimeout, "body_too_slow", "request body arrived too slowly; try again on a better connection"},
}

// A refusal is an error with the answer for the client (status, code, sentence and further fields) and
// the cause for the log.
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

func (r *refusal) retryIn(seconds int) *refusal {
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
	for _, p := range errorResponses {
		switch {
		case !errors.Is(err, p.err):
		case p.err == fairshare.ErrSaturated:
			return refuse(p.status, p.code, p.message).because(err).retryIn(saturatedRetrySeconds)
		default:
			return refuse(p.status, p.code, p.message).because(err)
		}
	}
	if lockTimeout(err) {
		return refuse(http.StatusServiceUnavailable, "platform_unavailable", "platform datastore unavailable — retry shortly").
			because(err).retryIn(saturatedRetrySeconds)
	}
	return refuse(http.StatusInternalServerError, "internal", "internal error; it has been logged").because(err)
}

// lockTimeout reports whether the database gave up waiting for a row that another transaction has locked.
func lockTimeout(err error) bool { return pq.As(err, pqerror.LockNotAvailable) != nil }

// cancelledByClient reports whether err is the result of a client that has disconnected.
func cancelledByClient(c *gin.Context, err error) bool {
	// net/http cancels the context also when a read fails with the deadline for slow bodies.
	return errors.Is(c.Request.Context().Err(), context.Canceled) && !errors.Is(err, errSlowBody)
}

// codeFor returns the code under which an error is counted.
func codeFor(c *gin.Context, err error) string {
	if cancelledByClient(c, err) {
		return "cut_by_client"
	}
	return refusalFor(err).code
}

// Render logs err, a failure of the platform at level error and a refusal at level info, and answers with
// it unless the answer has begun. It lets the client finish sending before it answers.
func Render(c *gin.Context, err error) {
	r := refusalFor(err)
	meter(c).Refused(c.FullPath(), codeFor(c, err))
	log := logger(c).With("status", r.status, "code", r.code, "error", err.Error())
	for field, value := range r.fields {
		log = log.With(field, value)
	}
	switch {
	case cancelledByClient(c, err):
		log.InfoContext(c, "request cancelled by the client")
	case r.status >= http.StatusInternalServerError && !expected(r):
		log.ErrorContext(c, "failed")
	case r.status == http.StatusUnauthorized:
		logAuthFailure(c, log)
	default:
		log.InfoContext(c, "refused")
	}
	if c.Writer.Written() {
		return
	}
	releaseMemory(c) // before drain: a slow client must not hold memory that others need
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
	setSafeHeaders(c) // a handler may have set or deleted them for the answer that it could not give
	c.PureJSON(r.status, body)
}

// expected reports whether a refusal with a 5xx is no failure of the platform: a full quota, or a limit that
// the operator has set. Logged as errors, they would page somebody whenever a client is too fast.
func expected(r *refusal) bool {
	return r.status == http.StatusInsufficientStorage || r.code == "saturated"
}
