// Package events reads the events of a workspace in order: files are staged, fetched and acknowledged
// or expire, and messages arrive.
//
// A reader that continues from the position of the last event it handled gets every event exactly
// once, whatever other replicas write concurrently. Events are ordered by time, approximately. The
// first event of a file is its staging, and the state of a file never goes back: if the fetch of a
// file is recorded after its ack, the fetched event has the state acked.
//
// Staged files and messages are rows of the inbox, which have sequence numbers. All other events are
// receipts: a trigger of the database inserts a receipt without a number in the transaction that
// changes the file. A number at that point would need a counter row, whose lock is held until the
// commit is durable, and would serialize the acks of a workspace (measured with 8 concurrent acks in
// one workspace: 41 % of the rate of the bare UPDATE; with an unnumbered receipt 95 %). The first
// reader numbers the receipts instead, under the counter's lock, which makes the order of those
// commits the order of the numbers.
//
// Receipts are kept for Retention. The package owns the tables receipts and receipt_counters.
package events

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
)

// ErrGone means that some events after a position were pruned, or that the position never existed.
var ErrGone = errors.New("events: no such position to continue after")

// ErrInvalidPosition means that a string is not the form of a Position.
var ErrInvalidPosition = errors.New("events: not a position")

// Retention is how long a receipt is kept.
const Retention = 24 * time.Hour

// Kind is the kind of an event, and the state of a file.
type Kind string

// The kinds of events.
const (
	Staged  Kind = "staged"
	Fetched Kind = "fetched"
	Acked   Kind = "acked"
	Expired Kind = "expired"
	Message Kind = "message"
)

// A Position is a cursor: the numbers of the last row and of the last receipt that a reader has seen.
// The zero value is before the first event.
type Position struct{ Row, Receipt int64 }

// String returns the form that ParsePosition accepts.
func (p Position) String() string {
	return strconv.FormatInt(p.Row, 10) + "-" + strconv.FormatInt(p.Receipt, 10)
}

// ParsePosition parses the form that String returns, and no other. Its error is ErrInvalidPosition.
func ParsePosition(s string) (Position, error) {
	row, receipt, _ := strings.Cut(s, "-")
	r, err := strconv.ParseUint(row, 10, 63)
	n, nerr := strconv.ParseUint(receipt, 10, 63)
	p := Position{int64(r), int64(n)}
	if err != nil || nerr != nil || p.String() != s {
		return Position{}, ErrInvalidPosition
	}
	return p, nil
}

// An Event is something that happened in a workspace.
type Event struct {
	Position // of a reader that has seen this event
	Kind     Kind
	At       time.Time

	// The file, for all kinds but Message. State is the state of the file when it was recorded.
	State  Kind
	FileID uuid.UUID
	Name   string
	Size   int64

	// The inbox row, for Staged and Message.
	RowID  uuid.UUID
	Source uuid.NullUUID
	Method string
}

// Log reads events. It is safe for concurrent use.
type Log struct {
	db    *sql.DB
	inbox *activity.Inbox
}

// New returns the events in db.
func New(db *sql.DB, inbox *activity.Inbox) *Log { return &Log{db: db, inbox: inbox} }

// Now returns the position after the newest event.
func (l *Log) Now(ctx context.Context, workspace uuid.UUID) (Position, error) {
	receipt, err := l.lastReceipt(ctx, workspace, 0)
	if err != nil && !errors.Is(err, ErrGone) {
		return Position{}, err
	}
	row, err := l.inbox.Last(ctx, workspace, 0)
	if err != nil && !errors.Is(err, activity.ErrCursorGone) {
		return Position{}, err
	}
	return Position{row, receipt}, nil
}

// Check returns ErrGone if a reader cannot continue after p without missing events.
func (l *Log) Check(ctx context.Context, workspace uuid.UUID, p Position) error {
	if _, err := l.lastReceipt(ctx, workspace, p.Receipt); err != nil {
		return err
	}
	_, err := l.inbox.Last(ctx, workspace, p.Row)
	if errors.Is(err, activity.ErrCursorGone) {
		return ErrGone
	}
	return err
}

// After returns up to 2*limit events after p, and whether there may be more. It returns ErrGone if
// some of the events after p were pruned.
//
// Receipts are read before rows, so that the rows include the staging of every file that a receipt
// names.
func (l *Log) After(ctx context.Context, workspace uuid.UUID, p Position, limit int) (events []Event, more bool, err error) {
	receipts, unnumbered, err := l.readReceipts(ctx, workspace, p.Receipt, limit)
	if err == nil && unnumbered {
		if err = l.assignNumbers(ctx, workspace); err == nil {
			receipts, unnumbered, err = l.readReceipts(ctx, workspace, p.Receipt, limit)
		}
	}
	if err != nil {
		return nil, false, err
	}
	headers, err := l.inbox.ReadHeaders(ctx, workspace, p.Row, limit)
	if err != nil {
		return nil, false, err
	}
	rows := make([]Event, len(headers))
	for i, h := range headers {
		if rows[i], err = fromRow(h); err != nil {
			return nil, false, fmt.Errorf("events: row %s: %w", h.ID, err)
		}
	}
	moreRows, moreReceipts := len(rows) == limit, len(receipts) == limit
	events, err = merge(p, rows, receipts, moreRows, moreReceipts)
	return events, unnumbered || moreRows || moreReceipts, err
}

// merge sorts rows and receipts by time and sets their positions. A receipt never precedes the row of
// its file, whatever the clock says. If one of the lists is a full page, events of the other list that
// are later than its last are left for the next call.
func merge(p Position, rows, receipts []Event, moreRows, moreReceipts bool) ([]Event, error) {
	staged := map[uuid.UUID]bool{} // files whose row is not merged yet
	for _, r := range rows {
		staged[r.FileID] = true
	}
	delete(staged, uuid.Nil)
	events := make([]Event, 0, len(rows)+len(receipts))
	for len(rows) > 0 || len(receipts) > 0 {
		if len(rows) == 0 && moreRows || len(receipts) == 0 && moreReceipts {
			break
		}
		if len(rows) > 0 && (len(receipts) == 0 || staged[receipts[0].FileID] || !receipts[0].At.Before(rows[0].At)) {
			if p.Row++; rows[0].Row != p.Row {
				return nil, ErrGone
			}
			delete(staged, rows[0].FileID)
			rows[0].Position = p
			events, rows = append(events, rows[0]), rows[1:]
			continue
		}
		if p.Receipt++; receipts[0].Receipt != p.Receipt {
			return nil, ErrGone
		}
		receipts[0].Position = p
		events, receipts = append(events, receipts[0]), receipts[1:]
	}
	return events, nil
}

// fromRow converts an inbox row to its event: Staged or Message.
func fromRow(h activity.RowHeader) (Event, error) {
	e := Event{Position: Position{Row: h.Seq}, Kind: Message, At: h.CreatedAt, RowID: h.ID, Source: h.Source, Method: h.Method}
	if h.Upload == nil {
		return e, nil
	}
	var body struct {
		FileID uuid.UUID `json:"file_id"`
		Name   string    `json:"name"`
		Size   int64     `json:"size"`
	}
	if err := json.Unmarshal(h.Upload, &body); err != nil {
		return e, err
	}
	e.Kind, e.State, e.FileID, e.Name, e.Size = Staged, Staged, body.FileID, body.Name, body.Size
	return e, nil
}
