package handlers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/fairshare"
	"github.com/molecule-ai/platform/internal/forward"
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

	// maxDepth is the maximum nesting of a message. Parsers have a limit, Python's about 1,000 levels,
	// and a poller that cannot parse a page of the inbox would never get past it.
	maxDepth = 500
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
	message, method, err := parseMessage(raw)
	if err != nil {
		return err
	}
	w, err := h.workspaces.Get(c.Request.Context(), wsauth.WorkspaceOf(c))
	if err != nil {
		return err
	}
	entry := activity.Entry{
		Type: activity.TypeA2AReceive, Method: method, Summary: method, RequestBody: message, Status: activity.StatusOK,
		TargetID: uuid.NullUUID{UUID: w.ID, Valid: true},
	}
	if caller := wsauth.CallerOf(c); !caller.Admin {
		entry.SourceID = uuid.NullUUID{UUID: caller.Workspace, Valid: true}
	}
	if w.Mode == workspaces.Poll {
		ctx := c.Request.Context()
		if err := connected(ctx, c, w.ID, func() error { return h.inbox.Record(ctx, w.ID, entry) }); err != nil {
			return err
		}
		publish(c, w.ID, notify.Rows)
		logger(c).InfoContext(c, "message queued", "method", method, "size", len(raw))
		c.PureJSON(http.StatusOK, gin.H{"status": "queued", "delivery_mode": workspaces.Poll, "method": method})
		return nil
	}
	return h.sendPush(c, w, raw, entry)
}

// sendPush calls the workspace and records the call and its answer in the inbox.
func (h *A2AHandler) sendPush(c *gin.Context, w workspaces.Workspace, raw []byte, entry activity.Entry) error {
	if err := checkCallable(w); err != nil {
		return err
	}
	release, err := admit(c, h.calls)
	if err != nil {
		return err
	}
	defer release()
	start := time.Now()
	answer, err := h.push.Post(c.Request.Context(), forward.Request{
		URL: w.URL, ContentType: "application/json", ContentLength: int64(len(raw)), Body: bytes.NewReader(raw),
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
	logger(c).InfoContext(c, "message forwarded", "method", entry.Method, "answer", answer.Status, "size", len(raw), "duration", took)
	relay(c, answer)
	return nil
}

// record appends a call to the inbox. The call has been made, so neither a failure nor a disconnected
// caller changes the answer.
func (h *A2AHandler) record(c *gin.Context, workspace uuid.UUID, entry activity.Entry) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Request.Context()), recordTimeout)
	defer cancel()
	if err := connected(ctx, c, workspace, func() error { return h.inbox.Record(ctx, workspace, entry) }); err != nil {
		logger(c).ErrorContext(c, "recording the call failed", "method", entry.Method, "error", err)
		return
	}
	publish(c, workspace, notify.Rows)
}

// parseMessage checks that raw is a JSON-RPC request, and returns its stored form and its method.
func parseMessage(raw []byte) (json.RawMessage, string, error) {
	invalid := refuse(http.StatusBadRequest, "invalid_json", "request body must be a JSON-RPC object")
	if depth(raw) > maxDepth {
		return nil, "", refuse(http.StatusBadRequest, "invalid_json", "request body is nested more than 500 levels deep")
	}
	var envelope map[string]json.RawMessage
	if err := json.Unmarshal(raw, &envelope); err != nil || envelope == nil {
		return nil, "", invalid.because(err)
	}
	var method string
	err := json.Unmarshal(envelope["method"], &method)
	if err != nil || method == "" || len(method) > maxMethodBytes || strings.ContainsFunc(method, unicode.IsControl) {
		return nil, "", refuse(http.StatusBadRequest, "invalid_method", "method must be a string of 1 to 200 bytes without control characters").because(err)
	}
	if method == activity.MethodChatUpload {
		return nil, "", refuse(http.StatusBadRequest, "reserved_method", "method "+method+" is reserved for the platform; upload the file instead")
	}
	message, err := renameTypeKeys(raw, "params", "message", "parts")
	if err != nil {
		return nil, "", invalid.because(err)
	}
	return storable(message), method, nil
}

// depth returns the nesting of the JSON raw. The result is meaningless if raw is not JSON.
func depth(raw []byte) int {
	deepest, level, quoted := 0, 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			level++
			deepest = max(deepest, level)
		case c == '}' || c == ']':
			level--
		}
	}
	return deepest
}

// renameTypeKeys returns the JSON object raw with the legacy key "type" of the parts at path renamed to
// "kind". Everything that is not on the path, or has another shape, is returned unchanged.
func renameTypeKeys(raw json.RawMessage, path ...string) (json.RawMessage, error) {
	if len(path) == 0 {
		return renamePartTypeKeys(raw)
	}
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) != nil || object[path[0]] == nil {
		return raw, nil
	}
	inner, err := renameTypeKeys(object[path[0]], path[1:]...)
	if err != nil || bytes.Equal(inner, object[path[0]]) {
		return raw, err
	}
	object[path[0]] = inner
	return marshal(object)
}

func renamePartTypeKeys(raw json.RawMessage) (json.RawMessage, error) {
	var parts []json.RawMessage
	if json.Unmarshal(raw, &parts) != nil {
		return raw, nil
	}
	changed := false
	for i, part := range parts {
		var fields map[string]json.RawMessage
		if json.Unmarshal(part, &fields) != nil || fields["type"] == nil || fields["kind"] != nil {
			continue
		}
		fields["kind"] = fields["type"]
		delete(fields, "type")
		modern, err := marshal(fields)
		if err != nil {
			return nil, err
		}
		parts[i], changed = modern, true
	}
	if !changed {
		return raw, nil
	}
	return marshal(parts)
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

// asJSON returns a workspace's answer as JSON: unchanged if it is JSON, as a string otherwise, nil if it
// is longer than maxRecordedAnswer.
func asJSON(answer []byte) json.RawMessage {
	switch {
	case len(answer) == 0 || len(answer) > maxRecordedAnswer:
		return nil
	case json.Valid(answer):
		return storable(answer)
	default:
		s, _ := marshal(string(answer)) // a string can always be marshalled
		return s
	}
}
