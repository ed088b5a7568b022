// Package events tells what becomes of what is sent to a workspace: files are staged, fetched,
// acknowledged or expire, and messages come.
//
// It promises what the inbox promises: a reader that goes on from the position of the last event it
// handled gets every event once, whatever is written at the same time on however many replicas.
// Events come about in the order in which they happened. A file's begin with its staging, and its
// state never goes back: when a workspace is so quick that the note of its fetching comes after
// its ack, that event says that the file is acked.
//
// Rows of the inbox have numbers that can be followed, so staged files and messages are read from
// there. The others are receipts: the database itself writes one, without a number, in the
// transaction that changes the file, whoever changes it. A number at that point would need a
// counter, whose lock lasts until the commit is on disk, so a workspace's acks would come one after
// the other (measured, 8 at once in one workspace: 41 % of the rate of the bare UPDATE; with a
// receipt 95 %). So receipts are numbered by who comes to read them, under the counter's lock,
// which makes the order of those commits the order of numbers.
//
// Receipts are kept for Retention. The package owns receipts and receipt_counters.
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

// ErrGone means that the events after a position cannot be told any more, or that there never was
// such a position.
var ErrGone = errors.New("events: no such position to continue after")

// ErrInvalidPosition means that what should be a position is not written as one.
var ErrInvalidPosition = errors.New("events: not a position")

// Retention is how long a receipt is kept.
const Retention = 24 * time.Hour

// Kind says what happened.
type Kind string

// The kinds of events.
const (
	Staged  Kind = "staged"
	Fetched Kind = "fetched"
	Acked   Kind = "acked"
	Expired Kind = "expired"
	Message Kind = "message"
)

// A Position is how far a reader has come: the numbers of the last row and of the last receipt it
// has seen. The zero value is before the first.
type Position struct{ Row, Receipt int64 }

// String returns the position as ParsePosition takes it.
func (p Position) String() string {
	return strconv.FormatInt(p.Row, 10) + "-" + strconv.FormatInt(p.Receipt, 10)
}

// ParsePosition reads what String wrote. ErrInvalidPosition.
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
	Position // of a reader who has seen it
	Kind     Kind
	At       time.Time

	// Of a file, for all kinds but Message. State is a kind too: what the file was by then.
	State  Kind
	FileID uuid.UUID
	Name   string
	Size   int64

	// Of a row, for Staged and Message.
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

// Now returns the position after all that has happened so far.
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

// Check returns ErrGone if a reader cannot go on after p without missing events.
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

// After returns events after p, about limit of them, and whether there may be more already. ErrGone
// if some that should be among them were pruned.
//
// Receipts are read first, so that the row of every file that they are about is among the rows
// read after them.
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

// merge puts rows and receipts in one order, that of time, and gives each its position. But no
// receipt comes before the row of its file, whatever the clock says. If there are more of one, those
// of the other that are later than the last of these have to wait.
func merge(p Position, rows, receipts []Event, moreRows, moreReceipts bool) ([]Event, error) {
	staged := map[uuid.UUID]bool{} // files whose row is still to come
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

// fromRow is the event that a row tells of: a file was staged, or a message came.
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
