package handlers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/fairshare"
	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// RegistryHandler serves the registrations and heartbeats of workspaces.
type RegistryHandler struct {
	workspaces *workspaces.Store
	tokens     *wsauth.Tokens
	open       bool
	rates      *RateLimits
	json       *fairshare.Budget
	newcomers  *fairshare.Budget // places
	small      *fairshare.Budget // JSON of newcomers
	hosts      *HostCheck        // nil: none
}

// What requests without a valid token hold at once: requests, and bytes of their bodies. Addresses share both.
const (
	maxNewcomers         = 64
	maxNewcomerJSONBytes = 16 << 20
)

// NewRegistryHandler returns the handler. If open, an unknown id may register without a token. The handler
// applies rates itself, because the workspace to authenticate is in the body. json is the budget for the bodies of
// requests with a valid token.
func NewRegistryHandler(store *workspaces.Store, tokens *wsauth.Tokens, open bool, rates *RateLimits, json *fairshare.Budget) *RegistryHandler {
	return &RegistryHandler{
		workspaces: store, tokens: tokens, open: open, rates: rates,
		json: json, newcomers: fairshare.New(maxNewcomers), small: fairshare.New(maxNewcomerJSONBytes),
	}
}

// WithHostCheck makes registrations without a token pass the check, and returns the handler.
func (h *RegistryHandler) WithHostCheck(check *HostCheck) *RegistryHandler {
	h.hosts = check
	return h
}

const senderKey = "handlers.sender"

// Identify is middleware that looks at the token before the body is read: requests without a valid token share a small
// budget of their own, so that their bodies take nothing from workspaces that are known. It does not authorize the
// request.
func (h *RegistryHandler) Identify(c *gin.Context) {
	sender, err := h.tokens.Identify(c.Request.Context(), wsauth.Bearer(c.GetHeader("Authorization")))
	switch {
	case err == nil:
		c.Set(senderKey, sender)
		holder := sender.Workspace
		if sender.Admin {
			holder = operator
		}
		account(c, h.json, holder)
	case errors.Is(err, wsauth.ErrUnauthorized):
		holder := addressHolder(c)
		if err := h.newcomers.Take(holder, 1); err != nil {
			Render(c, err)
			c.Abort()
			return
		}
		defer h.newcomers.Release(holder, 1)
		account(c, h.small, holder)
	default:
		Render(c, err)
		c.Abort()
	}
}

// senderFor returns the caller that Identify found, if it may act on the workspace.
func senderFor(c *gin.Context, workspace uuid.UUID) (sender wsauth.Caller, ok bool) {
	sender, _ = c.Value(senderKey).(wsauth.Caller)
	if !sender.Admin && (sender.TokenID == uuid.Nil || sender.Workspace != workspace) {
		return wsauth.Caller{}, false
	}
	return sender, true
}

// maxAgentCardBytes bounds a workspace's card, which is kept as long as the workspace.
const maxAgentCardBytes = 64 << 10

// Register registers a workspace. The route has no guard, because a new workspace has no token yet; the
// store decides who may register.
func (h *RegistryHandler) Register(c *gin.Context) error {
	var body struct {
		ID           string          `json:"id"`
		AgentCard    json.RawMessage `json:"agent_card"`
		DeliveryMode workspaces.Mode `json:"delivery_mode"`
		URL          string          `json:"url"`
	}
	if err := h.hosts.admit(c); err != nil {
		return err
	}
	if err := readJSON(c, &body); err != nil {
		return err
	}
	id, err := wsauth.ParseUUID(body.ID)
	if err != nil {
		return refuse(http.StatusBadRequest, "invalid_id", "id must be a UUID")
	}
	if !bytes.HasPrefix(bytes.TrimSpace(body.AgentCard), []byte("{")) {
		return refuse(http.StatusBadRequest, "invalid_agent_card", "agent_card must be an object")
	}
	if len(body.AgentCard) > maxAgentCardBytes {
		return refuse(http.StatusBadRequest, "invalid_agent_card", fmt.Sprintf("agent_card must have at most %d bytes", maxAgentCardBytes))
	}
	caller, err := h.admit(c, id)
	if err != nil {
		return err
	}
	holder := newcomers
	if caller != (wsauth.Caller{}) {
		holder = id
	}
	var w workspaces.Workspace
	var token string
	ctx := c.Request.Context()
	err = connected(ctx, c, holder, func() (err error) {
		w, token, err = h.workspaces.Register(ctx, workspaces.Registration{
			ID: id, AgentCard: body.AgentCard, Mode: body.DeliveryMode, URL: body.URL,
			Bearer: wsauth.Bearer(c.GetHeader("Authorization")), Open: h.open,
		})
		return err
	})
	if err != nil {
		return err
	}
	answer := gin.H{"status": "registered", "delivery_mode": w.DeliveryMode(), "platform_inbound_secret": w.InboundSecret}
	if token != "" {
		answer["auth_token"] = token
	}
	h.auditRegistration(c, caller, id, w, token != "")
	c.PureJSON(http.StatusOK, answer)
	return nil
}

// admit returns the caller of a registration and applies the rate limits. A workspace without a token
// may present any: it is the zero Caller.
func (h *RegistryHandler) admit(c *gin.Context, id uuid.UUID) (wsauth.Caller, error) {
	if caller, ok := senderFor(c, id); ok {
		return caller, h.rates.admit(caller)
	}
	return wsauth.Caller{}, h.rates.admitRegistration(c.ClientIP())
}

// auditRegistration writes the audit line of a registration, with the id of the token that it issued.
func (h *RegistryHandler) auditRegistration(c *gin.Context, caller wsauth.Caller, id uuid.UUID, w workspaces.Workspace, issued bool) {
	attrs := []any{"workspace_id", id, "delivery_mode", w.DeliveryMode(), "token_issued", issued}
	if issued {
		attrs = append(attrs, "new_token_id", newestToken(c, h.tokens, id))
	}
	auditAs(c, caller, "registered", attrs...)
}

// newestToken returns the id of the token that was issued last, for the audit trail, or the zero UUID if the
// lookup fails.
func newestToken(c *gin.Context, tokens *wsauth.Tokens, workspace uuid.UUID) uuid.UUID {
	list, err := tokens.List(c.Request.Context(), workspace)
	if err != nil || len(list) == 0 {
		return uuid.Nil
	}
	return list[len(list)-1].ID
}

// Heartbeat stores the heartbeat of a workspace. Without a valid token it refuses before it reads the body.
func (h *RegistryHandler) Heartbeat(c *gin.Context) error {
	if _, known := c.Get(senderKey); !known {
		return wsauth.ErrUnauthorized
	}
	var body struct {
		WorkspaceID string `json:"workspace_id"`
		report
	}
	if err := readJSON(c, &body); err != nil {
		return err
	}
	id, err := wsauth.ParseUUID(body.WorkspaceID)
	if err != nil {
		return refuse(http.StatusBadRequest, "invalid_workspace_id", "workspace_id must be a UUID")
	}
	caller, ok := senderFor(c, id)
	if !ok {
		return wsauth.ErrUnauthorized
	}
	if err := h.rates.admit(caller); err != nil {
		return err
	}
	raw, err := json.Marshal(body.report)
	if err != nil {
		return err
	}
	var secret string
	ctx := c.Request.Context()
	err = connected(ctx, c, id, func() (err error) {
		secret, err = h.workspaces.Heartbeat(ctx, id, raw, !caller.Admin)
		return err
	})
	if err != nil {
		return err
	}
	c.PureJSON(http.StatusOK, gin.H{"status": "ok", "platform_inbound_secret": secret})
	return nil
}

// report has the optional fields of a heartbeat. They are stored as sent.
type report struct {
	ActiveTasks   json.RawMessage `json:"active_tasks,omitempty"`
	ErrorRate     json.RawMessage `json:"error_rate,omitempty"`
	SampleError   json.RawMessage `json:"sample_error,omitempty"`
	UptimeSeconds json.RawMessage `json:"uptime_seconds,omitempty"`
	CurrentTask   json.RawMessage `json:"current_task,omitempty"`
	RuntimeState  json.RawMessage `json:"runtime_state,omitempty"`
}
