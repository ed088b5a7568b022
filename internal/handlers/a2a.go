package handlers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/forward"
	"github.com/molecule-ai/platform/internal/jsoncheck"
	"github.com/molecule-ai/platform/internal/notify"
	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

const (
	// messageTimeout bounds the wait for a push workspace to answer a message: agents take minutes.
	messageTimeout = 5 * time.Minute

	// recordTimeout bounds the insert of the inbox row of a message that was delivered already.
	recordTimeout = 5 * time.Second

	maxMethodBytes = 200
)

// A2AHandler receives messages for agents. It forwards them to push workspaces, and appends them to the
// inbox of poll workspaces.
type A2AHandler struct {
	workspaces *workspaces.Store
	inbox      *activity.Inbox
	push       *forward.Client
	admission  *Admission
}

// NewA2AHandler returns the handler.
func NewA2AHandler(store *workspaces.Store, inbox *activity.Inbox, push *forward.Client, admission *Admission) *A2AHandler {
	return &A2AHandler{workspaces: store, inbox: inbox, push: push, admission: admission}
}

// Send handles one JSON-RPC message.
func (h *A2AHandler) Send(c *gin.Context) error {
	raw, err := readBody(c)
	if err != nil {
		return err
	}
	m, err := parseMessage(raw)
	if err != nil {
		return err
	}
	w, err := h.workspaces.Get(c.Request.Context(), wsauth.WorkspaceOf(c))
	if err != nil {
		return err
	}
	entry := activity.Entry{
		Type: activity.TypeA2AReceive, Method: m.method, Summary: m.method, RequestBody: m.body, Status: activity.StatusOK,
		TargetID: uuid.NullUUID{UUID: w.ID, Valid: true},
	}
	if caller := wsauth.CallerOf(c); !caller.Admin {
		entry.SourceID = uuid.NullUUID{UUID: caller.Workspace, Valid: true}
	}
	if w.Mode == workspaces.Poll {
		if err := h.inbox.Record(c.Request.Context(), w.ID, entry); err != nil {
			return err
		}
		publish(c, w.ID, notify.Rows)
		logger(c).InfoContext(c, "message queued", "method", m.method, "size", len(raw))
		c.PureJSON(http.StatusOK, gin.H{"status": "queued", "delivery_mode": workspaces.Poll, "method": m.method})
		return nil
	}
	return h.sendPush(c, w, m.body, entry)
}

// sendPush calls the workspace and records the call and its answer in the inbox.
func (h *A2AHandler) sendPush(c *gin.Context, w workspaces.Workspace, body []byte, entry activity.Entry) error {
	if err := checkCallable(w); err != nil {
		return err
	}
	release, err := h.admission.Admit()
	if err != nil {
		return err
	}
	defer release()
	start := time.Now()
	answer, err := h.push.Post(c.Request.Context(), forward.Request{
		URL: w.URL, ContentType: "application/json", ContentLength: int64(len(body)), Body: bytes.NewReader(body),
		RequestID: c.GetString(requestIDKey), Timeout: messageTimeout,
	})
	took := time.Since(start)
	entry.Duration = &took
	if err != nil {
		entry.Status, entry.ErrorDetail = activity.StatusError, "workspace unreachable"
		if c.Request.Context().Err() != nil {
			entry.ErrorDetail = "caller disconnected before the answer"
		}
		h.record(c, w.ID, entry)
		return err
	}
	entry.ResponseBody = asJSON(answer.Body)
	if answer.Status >= http.StatusBadRequest {
		entry.Status, entry.ErrorDetail = activity.StatusError, fmt.Sprintf("workspace answered %d", answer.Status)
	}
	h.record(c, w.ID, entry)
	logger(c).InfoContext(c, "message forwarded", "method", entry.Method, "answer", answer.Status, "size", len(body), "duration", took)
	relay(c, answer)
	return nil
}

// record appends a call to the inbox. The call has been made, so neither a failure nor a disconnected
// caller changes the answer.
func (h *A2AHandler) record(c *gin.Context, workspace uuid.UUID, entry activity.Entry) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Request.Context()), recordTimeout)
	defer cancel()
	if err := h.inbox.Record(ctx, workspace, entry); err != nil {
		logger(c).ErrorContext(c, "recording the call failed", "method", entry.Method, "error", err)
		return
	}
	publish(c, workspace, notify.Rows)
}

// marshal is json.Marshal without the escapes for HTML.
func marshal(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// maxRecordedAnswer bounds the answer that is recorded with a call.
const maxRecordedAnswer = 1 << 20

// asJSON returns a workspace's answer as JSON: unchanged if it is JSON that every reader of the inbox can
// use, as a string otherwise, nil if it is longer than maxRecordedAnswer.
func asJSON(answer []byte) json.RawMessage {
	switch {
	case len(answer) == 0 || len(answer) > maxRecordedAnswer:
		return nil
	case jsoncheck.Check(answer) == nil:
		return answer
	default:
		s, _ := marshal(string(answer)) // a string can always be marshalled
		return s
	}
}
