package handlers

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/molecule-ai/platform/internal/fairshare"
	"github.com/molecule-ai/platform/internal/forward"
	"github.com/molecule-ai/platform/internal/notify"
	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/spool"
	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// UploadLimits bound one upload, and the bytes that all uploads in flight hold.
type UploadLimits struct {
	MaxFileBytes    int64
	MaxRequestBytes int64 // all files together
	MaxFiles        int
	ExpiresAfter    time.Duration
	SpoolBytes      int64 // all uploads in flight to poll workspaces, as they arrive; 0: no bound
}

const (
	// multipartOverheadBytes is how much a body may have besides its files: boundaries, part headers and
	// other fields.
	multipartOverheadBytes = 1 << 20

	// ingestTimeout bounds the wait for the answer of a push workspace that has received the body.
	ingestTimeout = 60 * time.Second

	// secretRetrySeconds is the interval of heartbeats, with which a workspace receives a new inbound
	// secret.
	secretRetrySeconds = 30

	// saturatedRetrySeconds is the Retry-After of a 503 for saturation, and for a row that stays locked.
	saturatedRetrySeconds = 5
)

// ChatFilesHandler receives the files that users attach to a chat. It forwards the request to a push
// workspace, and stages the files for a poll workspace.
type ChatFilesHandler struct {
	workspaces *workspaces.Store
	push       *forward.Client
	limits     UploadLimits
	storage    pendinguploads.Storage // nil: staging is not wired
	spoolDir   string
	uploads    *fairshare.Budget
	spooled    *fairshare.Budget
}

// NewChatFilesHandler returns a handler that serves push workspaces only, until
// WithPendingUploads. uploads bounds the uploads in flight.
func NewChatFilesHandler(store *workspaces.Store, push *forward.Client, limits UploadLimits, uploads *fairshare.Budget) *ChatFilesHandler {
	return &ChatFilesHandler{workspaces: store, push: push, limits: limits, uploads: uploads, spooled: newSpoolBudget(limits.SpoolBytes)}
}

// WithPendingUploads wires staging, and returns the handler. Temporary files of uploads go
// to spoolDir, or the system's folder for them if it is "".
func (h *ChatFilesHandler) WithPendingUploads(storage pendinguploads.Storage, spoolDir string) *ChatFilesHandler {
	h.storage, h.spoolDir = storage, spoolDir
	return h
}

// Limits returns the limits of an upload. It needs no token: the limits are the same for all clients, and
// clients read them before they upload.
func (h *ChatFilesHandler) Limits(c *gin.Context) error {
	c.PureJSON(http.StatusOK, gin.H{
		"per_file_bytes": min(h.limits.MaxFileBytes, h.limits.MaxRequestBytes), "per_request_bytes": h.limits.MaxRequestBytes,
		"max_files": h.limits.MaxFiles, "expires_after_seconds": int64(h.limits.ExpiresAfter.Seconds()),
	})
	return nil
}

// Upload handles one multipart upload.
func (h *ChatFilesHandler) Upload(c *gin.Context) error {
	w, err := h.workspaces.GetForPush(c.Request.Context(), wsauth.WorkspaceOf(c))
	if err != nil {
		return err
	}
	if w.Mode == workspaces.Poll && h.storage == nil {
		return errNoCallbackURL("Staging is off. The operator can turn it on with 'platform migrate up' and a restart; " +
			"or register the workspace with delivery_mode push and a url.")
	}
	if w.Mode != workspaces.Poll {
		if err := checkPushable(c, h.workspaces, w); err != nil {
			return err
		}
	}
	if c.Request.ContentLength > h.limits.MaxRequestBytes+multipartOverheadBytes {
		return tooLarge(h.limits.MaxRequestBytes)
	}
	release, err := admit(c, h.uploads)
	if err != nil {
		return err
	}
	defer release()
	c.Request.Body = http.MaxBytesReader(c.Writer, c.Request.Body, h.limits.MaxRequestBytes+multipartOverheadBytes)
	if w.Mode == workspaces.Poll {
		return spooling(c, func() error { return h.uploadPollMode(c, w) })
	}
	return h.uploadPushMode(c, w)
}

// uploadPollMode stages the files of the request. It spools the whole body first, so that a slow client
// holds no transaction.
func (h *ChatFilesHandler) uploadPollMode(c *gin.Context, w workspaces.Workspace) error {
	start := time.Now()
	key, err := uploadKey(c)
	if err != nil {
		return err
	}
	reservation := reserveSpool(c, h.spooled, h.limits.MaxRequestBytes)
	defer reservation.release()
	batch := spool.NewBatch(pendinguploads.Limits{
		MaxFileBytes: h.limits.MaxFileBytes, MaxBatchBytes: h.limits.MaxRequestBytes,
	}, h.spoolDir)
	defer batch.Close()
	c.Request.Body = reservation.body(c.Request.Body)
	if err := h.spool(c.Request, batch); err != nil {
		return err
	}
	if err := wsauth.Recheck(c); err != nil {
		return err
	}
	files, replayed, err := h.storage.StageOnce(c.Request.Context(), w.ID, key, batch.Files())
	if err != nil {
		return stageFailed(err)
	}
	if !replayed {
		publish(c, w.ID, notify.Rows)
	}
	if replayed {
		meter(c).Replayed()
		audit(c, "upload replayed", "files", len(files))
	}
	views := make([]gin.H, len(files))
	for i, f := range files {
		views[i] = gin.H{
			"uri": f.URI(), "name": f.Name, "mimeType": f.MIMEType, "size": f.Size,
			"sha256": hex.EncodeToString(f.SHA256[:]), "expires_at": f.ExpiresAt.UTC(),
		}
		if replayed {
			continue
		}
		meter(c).Staged(f.Size)
		audit(c, "staged", "file_id", f.ID, "filename", f.Name, "size", f.Size, "duration", time.Since(start))
	}
	c.PureJSON(http.StatusOK, gin.H{"files": views})
	return nil
}

// idempotencyKey is the form of an Idempotency-Key. The IETF's draft defines a quoted string; clients send
// it with and without quotes, so quotes are part of the key.
var idempotencyKey = regexp.MustCompile(`^[!-~]{1,255}$`)

// uploadKey returns the request's Idempotency-Key, "" if it has none.
func uploadKey(c *gin.Context) (string, error) {
	values := c.Request.Header.Values("Idempotency-Key")
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1 || !idempotencyKey.MatchString(values[0]):
		return "", refuse(http.StatusBadRequest, "invalid_idempotency_key", "Idempotency-Key must be one value of 1 to 255 visible ASCII characters")
	}
	return values[0], nil
}

// stageFailed translates an error of the storage for an upload.
func stageFailed(err error) error {
	var quota *pendinguploads.QuotaError
	switch {
	case errors.As(err, &quota):
		return refuse(http.StatusInsufficientStorage, "quota_exceeded",
			"the workspace's quota of staged "+quota.What+" is used up; it has to fetch and acknowledge some first").
			with("quota", quota.What).with("used", quota.Used).with("limit", quota.Limit).because(err)
	case errors.Is(err, pendinguploads.ErrKeyInUse):
		return refusalFor(err).retryIn(1)
	case errors.Is(err, pendinguploads.ErrKeyReused), errors.Is(err, fairshare.ErrSaturated), lockTimeout(err):
		return err
	}
	return refuse(http.StatusInternalServerError, "stage_failed", "could not stage file").because(err)
}

// uploadPushMode forwards the request to the workspace.
func (h *ChatFilesHandler) uploadPushMode(c *gin.Context, w workspaces.Workspace) error {
	url, err := forward.IngestURL(w.URL)
	if err != nil {
		return fmt.Errorf("%w: stored url: %w", forward.ErrUnreachable, err)
	}
	start := time.Now()
	answer, err := h.push.Post(c.Request.Context(), forward.Request{
		URL: url, Secret: w.InboundSecret, ContentType: c.GetHeader("Content-Type"), ContentLength: c.Request.ContentLength,
		Body: c.Request.Body, RequestID: c.GetString(requestIDKey), Timeout: ingestTimeout,
	})
	switch {
	case errors.Is(err, forward.ErrUnreachable):
		return err
	case err != nil:
		return bodyError(err, h.limits.MaxRequestBytes)
	}
	drain(c) // the workspace may have answered early
	audit(c, "forwarded", "answer", answer.Status, "size", c.Request.ContentLength, "duration", time.Since(start))
	relay(c, answer)
	return nil
}

// relay relays a workspace's answer. The answer is untrusted, so browsers must not run it.
func relay(c *gin.Context, answer *forward.Answer) {
	setSandboxHeaders(c)
	c.Data(answer.Status, answer.ContentType, answer.Body)
}

// checkCallable returns an error if the URL of a push workspace is missing.
func checkCallable(w workspaces.Workspace) error {
	switch {
	case w.URL == "" && w.Mode == "":
		return errNoCallbackURL("The workspace has no delivery mode and no url. Register it with delivery_mode poll, or with push and a url.")
	case w.URL == "":
		return refuse(http.StatusServiceUnavailable, "url_not_registered", "workspace url not registered yet").retryIn(saturatedRetrySeconds)
	}
	return nil
}

// checkPushable is checkCallable for uploads, which need the inbound secret too. It generates a missing
// secret and returns a 503: the workspace receives the secret with its next heartbeat. During a rotation there is a
// secret, but none that the workspace knows and the platform may still present.
func checkPushable(c *gin.Context, store *workspaces.Store, w workspaces.Workspace) error {
	if err := checkCallable(w); err != nil || w.InboundSecret != "" {
		return err
	}
	ctx := c.Request.Context()
	if err := connected(ctx, c, w.ID, func() error { return store.EnsureSecret(ctx, w.ID) }); err != nil {
		return err
	}
	logger(c).WarnContext(c, "upload refused until the workspace has received its inbound secret")
	return refuse(http.StatusServiceUnavailable, "workspace_reregistering", "workspace re-registering — please retry in 30 seconds").
		with("retry_after_seconds", secretRetrySeconds).retryIn(secretRetrySeconds)
}

// errNoCallbackURL is the answer if an upload can be neither forwarded nor staged. Its sentence is fixed
// by the contract.
func errNoCallbackURL(detail string) *refusal {
	return refuse(http.StatusUnprocessableEntity, "no_callback_url",
		"workspace has no callback URL — chat upload requires push-mode + public URL").with("detail", detail)
}
