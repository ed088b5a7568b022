// Package activity is the inbox: an append-only log of rows for each workspace, which pollers read
// by cursor.
//
// It promises that a reader that follows the cursor sees every row of its workspace exactly once and
// in order, however many writers commit concurrently and in whatever order. The promise rests on one
// counter row for each workspace: Append takes its numbers from that row as the last statement before
// the commit, and the row's lock makes commit order the order of the numbers. Every writer of
// activity_logs must therefore go through this package.
//
// The package does not interpret the rows. It deletes rows only in Prune. It owns activity_logs,
// activity_counters, activity_readers, inbox_pruning and message_keys.
package activity

import (
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"
)

// The types, methods and statuses that the platform itself writes. Pollers filter on TypeA2AReceive.
// The row of an upload has that type too; MethodChatUpload distinguishes it.
const (
	TypeA2AReceive   = "a2a_receive"
	MethodChatUpload = "chat_upload_receive"

	StatusOK    = "ok"
	StatusError = "error"
)

// ErrCursorGone means that the workspace has no row with the id or number of the cursor: the row
// never existed, was pruned, or belongs to another workspace.
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

// A Row is a stored entry with the JSON form of the wire contract.
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

// text returns s as PostgreSQL can store it, nil if it is empty. The type text holds neither NUL nor
// invalid UTF-8, and one stray byte must not lose a message.
func text(s string) *string {
	if s == "" {
		return nil
	}
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
	return &s
}

// body is text for JSON. Valid JSON has no NUL byte, but may have \u0000: the type json keeps the
// escape as written, jsonb would refuse it.
func body(raw json.RawMessage) *string {
	if len(raw) == 0 {
		return nil
	}
	s := strings.ToValidUTF8(string(raw), "\uFFFD")
	return &s
}
