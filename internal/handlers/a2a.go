package handlers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/fairshare"
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

	// claimTimeout ends the claim of a call whose platform has crashed. It is longer than any call: sending a
	// message of 1 MiB may stall, and recording it may take recordTimeout.
	claimTimeout = 2 * messageTimeout

	maxMethodBytes = 200
)

// A2AHandler receives messages for agents. It forwards them to push workspaces, and appends them to the
// inbox of poll workspaces.
type A2AHandler struct {
	workspaces *workspaces.Store
	inbox      *activity.Inbox
	push       *forward.Client
	calls      *fairshare.Budget
}

// NewA2AHandler returns the handler. calls bounds the messages that wait for a push workspace's answer.
func NewA2AHandler(store *workspaces.Store, inbox *activity.Inbox, push *forward.Client, calls *fairshare.Budget) *A2AHandler {
	return &A2AHandler{workspaces: store, inbox: inbox, push: push, calls: calls}
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
		var recorded bool
		ctx := c.Request.Context()
		err := connected(ctx, c, w.ID, func() (err error) {
			recorded, err = h.queue(ctx, w, m, entry)
			return err
		})
		if err != nil {
			return err
		}
		if recorded {
			publish(c, w.ID, notify.Rows)
		}
		logger(c).InfoContext(c, "message queued", "method", m.method, "size", len(raw), "repeated", !recorded)
		c.PureJSON(http.StatusOK, gin.H{"status": "queued", "delivery_mode": workspaces.Poll, "method": m.method})
		return nil
	}
	return h.sendPush(c, w, m, entry)
}

// queue appends the message to the inbox, and reports whether it did: a sender that got no answer sends the very
// message again, and the agent must not do the work twice.
func (h *A2AHandler) queue(ctx context.Context, w workspaces.Workspace, m message, entry activity.Entry) (bool, error) {
	if !m.named {
		return true, h.inbox.Record(ctx, w.ID, entry)
	}
	return h.inbox.RecordOnce(ctx, w.ID, m.key(entry.SourceID), entry)
}

// sendPush calls the workspace and records the call and its answer in the inbox. A message that was answered already
// gets that answer.
func (h *A2AHandler) sendPush(c *gin.Context, w workspaces.Workspace, m message, entry activity.Entry) error {
	if err := checkCallable(w); err != nil {
		return err
	}
	release, err := admit(c, h.calls)
	if err != nil {
		return err
	}
	defer release()
	var claim *activity.Claim
	if m.named {
		var claimed activity.Claim
		var earlier *activity.Answer
		ctx := c.Request.Context()
		err := connected(ctx, c, w.ID, func() (err error) {
			claimed, earlier, err = h.inbox.ClaimCall(ctx, w.ID, m.key(entry.SourceID), claimTimeout)
			return err
		})
		if errors.Is(err, activity.ErrCallRunning) {
			return refusalFor(err).retryIn(saturatedRetrySeconds)
		}
		if err != nil {
			return err
		}
		if earlier != nil {
			logger(c).InfoContext(c, "message answered again", "method", m.method, "answer", earlier.Status)
			relay(c, &forward.Answer{Status: earlier.Status, ContentType: earlier.ContentType, Body: earlier.Body})
			return nil
		}
		claim = &claimed
	}
	start := time.Now()
	answer, err := h.push.Post(c.Request.Context(), forward.Request{
		URL: w.URL, ContentType: "application/json", ContentLength: int64(len(m.body)), Body: bytes.NewReader(m.body),
		RequestID: c.GetString(requestIDKey), Timeout: messageTimeout,
	})
	took := time.Since(start)
	entry.Duration = &took
	if err != nil {
		entry.Status, entry.ErrorDetail = activity.StatusError, "workspace unreachable"
		if c.Request.Context().Err() != nil {
			entry.ErrorDetail = "caller disconnected before the answer"
		}
		h.record(c, w.ID, entry, claim, nil)
		return err
	}
	entry.ResponseBody = asJSON(answer.Body)
	if answer.Status >= http.StatusBadRequest {
		entry.Status, entry.ErrorDetail = activity.StatusError, fmt.Sprintf("workspace answered %d", answer.Status)
	}
	h.record(c, w.ID, entry, claim, answer)
	logger(c).InfoContext(c, "message forwarded", "method", entry.Method, "answer", answer.Status, "size", len(m.body), "duration", took)
	relay(c, answer)
	return nil
}

// record appends a call to the inbox, and ends its claim if it has one. The call has been made, so neither a
// failure nor a disconnected caller changes the answer.
func (h *A2AHandler) record(c *gin.Context, workspace uuid.UUID, entry activity.Entry, claim *activity.Claim, answer *forward.Answer) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Request.Context()), recordTimeout)
	defer cancel()
	err := connected(ctx, c, workspace, func() error {
		switch {
		case claim == nil:
			return h.inbox.Record(ctx, workspace, entry)
		case answer == nil || answer.Status >= http.StatusMultipleChoices: // whoever sends it again causes another call
			return h.inbox.RecordCall(ctx, workspace, *claim, nil, entry)
		default:
			return h.inbox.RecordCall(ctx, workspace, *claim,
				&activity.Answer{Status: answer.Status, ContentType: answer.ContentType, Body: answer.Body}, entry)
		}
	})
	if err != nil {
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
