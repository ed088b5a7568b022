package handlers

import (
	"bytes"
	"fmt"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/notify"
	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// WorkspacesHandler manages workspaces and their tokens.
type WorkspacesHandler struct {
	workspaces *workspaces.Store
	tokens     *wsauth.Tokens
}

// NewWorkspacesHandler returns the handler.
func NewWorkspacesHandler(store *workspaces.Store, tokens *wsauth.Tokens) *WorkspacesHandler {
	return &WorkspacesHandler{workspaces: store, tokens: tokens}
}

// maxNameBytes bounds the name of a workspace.
const maxNameBytes = 200

// Create creates a workspace and its first token.
func (h *WorkspacesHandler) Create(c *gin.Context) error {
	var body struct {
		Name         string          `json:"name"`
		DeliveryMode workspaces.Mode `json:"delivery_mode"`
		URL          string          `json:"url"`
	}
	if err := readJSON(c, &body); err != nil {
		return err
	}
	if body.Name == "" || len(body.Name) > maxNameBytes || bytes.ContainsRune([]byte(body.Name), 0) {
		return refuse(http.StatusBadRequest, "invalid_name", "name must have 1 to 200 bytes").with("max", maxNameBytes)
	}
	w, token, err := h.workspaces.Create(c.Request.Context(), body.Name, body.DeliveryMode, body.URL)
	if err != nil {
		return err
	}
	audit(c, "workspace created", "workspace_id", w.ID, "delivery_mode", w.DeliveryMode(), "new_token_id", newestToken(c, h.tokens, w.ID))
	c.PureJSON(http.StatusCreated, gin.H{
		"id": w.ID, "auth_token": token, "platform_inbound_secret": w.InboundSecret, "delivery_mode": w.DeliveryMode(),
	})
	return nil
}

// List lists the workspaces, newest first, a page at a time.
func (h *WorkspacesHandler) List(c *gin.Context) error {
	p := params{get: c.Query}
	after, limit := p.uuid("after"), p.positive("limit", "a whole number from 1; more than 500 is 500")
	if p.err != nil {
		return p.err
	}
	if after.Valid && after.UUID == uuid.Nil {
		return workspaces.ErrNotFound
	}
	list, more, err := h.workspaces.List(c.Request.Context(), after.UUID, limit)
	if err != nil {
		return err
	}
	views := make([]listedView, len(list))
	for i, w := range list {
		views[i] = listedView{viewWorkspace(w.Workspace), w.URL, w.Online, w.UnackedFiles, w.UnackedBytes, utc(w.OldestUnackedAt)}
	}
	if more {
		c.Header("Link", fmt.Sprintf(`</workspaces?limit=%d&after=%s>; rel="next"`, len(list), list[len(list)-1].ID))
	}
	c.PureJSON(http.StatusOK, views)
	return nil
}

// Show returns one workspace.
func (h *WorkspacesHandler) Show(c *gin.Context) error {
	w, err := h.workspaces.Get(c.Request.Context(), wsauth.WorkspaceOf(c))
	if err != nil {
		return err
	}
	c.PureJSON(http.StatusOK, viewWorkspace(w))
	return nil
}

// Remove turns a workspace into a tombstone.
func (h *WorkspacesHandler) Remove(c *gin.Context) error {
	id, err := wsauth.ParseUUID(c.Param("id"))
	if err != nil {
		return wsauth.ErrInvalidWorkspaceID
	}
	ctx := c.Request.Context()
	if err := connected(ctx, c, id, func() error { return h.workspaces.Remove(ctx, id) }); err != nil {
		return err
	}
	publish(c, id, notify.Access)
	audit(c, "workspace removed", "workspace_id", id)
	c.PureJSON(http.StatusOK, gin.H{"status": workspaces.StatusRemoved})
	return nil
}

// MintToken issues another token, and returns it for the only time.
func (h *WorkspacesHandler) MintToken(c *gin.Context) error {
	var bearer string
	var token wsauth.Token
	ctx := c.Request.Context()
	err := connected(ctx, c, wsauth.WorkspaceOf(c), func() (err error) {
		bearer, token, err = h.workspaces.Mint(ctx, wsauth.WorkspaceOf(c))
		return err
	})
	if err != nil {
		return err
	}
	audit(c, "token minted", "new_token_id", token.ID)
	c.PureJSON(http.StatusCreated, gin.H{
		"id": token.ID, "auth_token": bearer, "prefix": token.Prefix, "created_at": token.CreatedAt.UTC(),
	})
	return nil
}

// ListTokens lists the public parts of the live tokens.
func (h *WorkspacesHandler) ListTokens(c *gin.Context) error {
	if err := requireExistingWorkspace(c, h.workspaces); err != nil {
		return err
	}
	tokens, err := h.tokens.List(c.Request.Context(), wsauth.WorkspaceOf(c))
	if err != nil {
		return err
	}
	for i, token := range tokens {
		tokens[i].CreatedAt, tokens[i].LastUsedAt = token.CreatedAt.UTC(), utc(token.LastUsedAt)
	}
	c.PureJSON(http.StatusOK, tokens)
	return nil
}

// RevokeToken revokes a token with immediate effect.
func (h *WorkspacesHandler) RevokeToken(c *gin.Context) error {
	id, err := wsauth.ParseUUID(c.Param("token_id"))
	if err != nil {
		return refuse(http.StatusBadRequest, "invalid_token_id", "invalid token_id")
	}
	ctx := c.Request.Context()
	if err := connected(ctx, c, wsauth.WorkspaceOf(c), func() error { return h.tokens.Revoke(ctx, wsauth.WorkspaceOf(c), id) }); err != nil {
		return err
	}
	publish(c, wsauth.WorkspaceOf(c), notify.Access)
	audit(c, "token revoked", "revoked_token_id", id)
	c.PureJSON(http.StatusOK, gin.H{"status": "revoked"})
	return nil
}

// RotateSecret replaces the secret with which the platform authenticates to a push workspace. A caller with a token of
// the workspace is the workspace, so it has the new secret with this answer.
func (h *WorkspacesHandler) RotateSecret(c *gin.Context) error {
	var body struct {
		RevokeNow bool `json:"revoke_now"`
	}
	if c.Request.ContentLength != 0 { // the body is optional
		if err := readJSON(c, &body); err != nil {
			return err
		}
	}
	rotation := workspaces.Rotation{RevokeNow: body.RevokeNow, Delivered: !wsauth.CallerOf(c).Admin}
	secret, err := h.workspaces.Rotate(c.Request.Context(), wsauth.WorkspaceOf(c), rotation)
	if err != nil {
		return err
	}
	audit(c, "inbound secret rotated", "revoke_now", rotation.RevokeNow, "delivered", rotation.Delivered)
	c.PureJSON(http.StatusOK, gin.H{"platform_inbound_secret": secret})
	return nil
}

type workspaceView struct {
	ID              uuid.UUID       `json:"id"`
	Name            string          `json:"name"`
	Status          string          `json:"status"`
	DeliveryMode    workspaces.Mode `json:"delivery_mode"`
	LastHeartbeatAt *time.Time      `json:"last_heartbeat_at"`
	CreatedAt       time.Time       `json:"created_at"`
}

// listedView is a workspace in the operator's list.
type listedView struct {
	workspaceView
	URL             string     `json:"url"`
	Online          bool       `json:"online"`
	UnackedFiles    int64      `json:"unacked_files"`
	UnackedBytes    int64      `json:"unacked_bytes"`
	OldestUnackedAt *time.Time `json:"oldest_unacked_at"`
}

func viewWorkspace(w workspaces.Workspace) workspaceView {
	return workspaceView{w.ID, w.Name, w.Status, w.DeliveryMode(), utc(w.LastHeartbeatAt), w.CreatedAt.UTC()}
}

// utc converts a time for an answer: times in answers end in Z.
func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC()
	return &u
}
