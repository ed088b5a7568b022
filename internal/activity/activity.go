// Package activity is the inbox: an append-only log of rows per workspace that pollers
// read by cursor.
//
// It promises that a reader who follows the cursor sees every row of its workspace
// exactly once and in order, however many writers commit at the same time and in
// whatever order. The promise rests on one counter row per workspace: Append takes its
// numbers from that row as the last thing before the commit, and the row's lock makes
// the order of commits the order of the numbers. Every writer of activity_logs therefore
// goes through this package.
//
// It does not interpret what the rows say, and it deletes none by itself.
package activity

import (
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"
)

// The types, methods and statuses that the platform itself writes. Pollers filter on
// TypeA2AReceive; an upload's row has it too and is told apart by its method.
const (
	TypeA2AReceive   = "a2a_receive"
	MethodChatUpload = "chat_upload_receive"

	StatusOK    = "ok"
	StatusError = "error"
)

// ErrCursorGone means that the row a reader wants to continue after does not exist in
// its workspace: it was never there, has been pruned, or belongs to another workspace.
var ErrCursorGone = errors.New("activity: no such row to continue after")

// An Entry is a row to append. Empty strings and nil bodies are stored as null.
type Entry struct {
	Type         string // required
	SourceID     uuid.NullUUID
	TargetID     uuid.NullUUID
	Method       string
	Summary      string
	RequestBody  json.RawMessage // valid JSON
	ResponseBody json.RawMessage // valid JSON
	Duration     *time.Duration  // stored in whole milliseconds
	Status       string
	ErrorDetail  string
}

// A Row is an entry as a reader sees it, rendered as the wire contract has it.
type Row struct {
	ID           uuid.UUID       `json:"id"`
	Seq          int64           `json:"seq"`
	WorkspaceID  uuid.UUID       `json:"workspace_id"`
	ActivityType string          `json:"activity_type"`
	SourceID     *uuid.UUID      `json:"source_id"`
	TargetID     *uuid.UUID      `json:"target_id"`
	Method       *string         `json:"method"`
	Summary      *string         `json:"summary"`
	RequestBody  json.RawMessage `json:"request_body"`
	ResponseBody json.RawMessage `json:"response_body"`
	DurationMS   *int64          `json:"duration_ms"`
	Status       *string         `json:"status"`
	ErrorDetail  *string         `json:"error_detail"`
	CreatedAt    time.Time       `json:"created_at"`
}

// text makes s storable: PostgreSQL's text holds neither NUL nor invalid UTF-8, and a
// message must not be lost for a stray byte in it.
func text(s string) *string {
	if s == "" {
		return nil
	}
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
	return &s
}

// body is text for JSON. A NUL cannot stand in valid JSON, and \u0000 may: the json type
// keeps it as it is written.
func body(raw json.RawMessage) *string {
	if len(raw) == 0 {
		return nil
	}
	s := strings.ToValidUTF8(string(raw), "\uFFFD")
	return &s
}
