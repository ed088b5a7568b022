package handlers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/events"
	"github.com/molecule-ai/platform/internal/fairshare"
	"github.com/molecule-ai/platform/internal/notify"
	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// eventsPageSize is how many events a stream reads at once. It bounds the memory of a stream: an event has
// a few hundred bytes.
const eventsPageSize = 100

// intervals are the timings of a stream.
type intervals struct {
	coalesce  time.Duration // the least between two reads, so that a burst of events is read together
	heartbeat time.Duration // between two writes; proxies close idle connections
	recheck   time.Duration // between two checks that the token is still valid
	retry     time.Duration // the mean of the retry field, after which clients reconnect
}

// untilWoken is for ever. The hub polls for all streams together, and wakes those that have something to read.
const untilWoken = 365 * 24 * time.Hour

var defaultIntervals = intervals{
	coalesce: 20 * time.Millisecond, heartbeat: 15 * time.Second, recheck: 30 * time.Second, retry: 2 * time.Second,
}

// EventsHandler streams the events of a workspace as server-sent events (WHATWG HTML, section 9.2). The id
// of an event is the position after it: a client that reconnects with it in Last-Event-ID continues there,
// on any replica.
type EventsHandler struct {
	workspaces *workspaces.Store
	tokens     *wsauth.Tokens
	log        *events.Log
	hub        *notify.Hub
	streams    *fairshare.Budget
	intervals  intervals
}

// NewEventsHandler returns the handler. streams bounds the open streams.
func NewEventsHandler(
	store *workspaces.Store, tokens *wsauth.Tokens, log *events.Log, hub *notify.Hub, streams *fairshare.Budget,
) *EventsHandler {
	return &EventsHandler{workspaces: store, tokens: tokens, log: log, hub: hub, streams: streams, intervals: defaultIntervals}
}

// Stream sends events until the client disconnects or stops reading, its token is revoked, or the platform
// stops.
func (h *EventsHandler) Stream(c *gin.Context) error {
	if err := requireExistingWorkspace(c, h.workspaces); err != nil {
		return err
	}
	release, err := admit(c, h.streams)
	if err != nil {
		return err
	}
	defer release()
	workspace := wsauth.WorkspaceOf(c)
	subscription := h.hub.Subscribe(workspace, notify.Rows|notify.Receipts|notify.Access)
	defer subscription.Close()
	position, err := h.position(c, workspace)
	if err != nil {
		return err
	}
	c.Header("Content-Type", "text/event-stream")
	c.Header("Cache-Control", "private, no-store, no-transform")
	c.Header("X-Accel-Buffering", "no") // nginx would buffer events
	c.Header("X-Content-Type-Options", "nosniff")
	s := &stream{EventsHandler: h, c: c, ctx: c.Request.Context(), workspace: workspace, position: position, subscription: subscription}
	err = s.run()
	if s.writeErr != nil || errors.Is(err, context.Canceled) {
		logger(c).DebugContext(c, "stream closed by the client", "error", errors.Join(s.writeErr, err))
		return nil
	}
	return err
}

// position returns the start of the stream: after Last-Event-ID, or now.
func (h *EventsHandler) position(c *gin.Context, workspace uuid.UUID) (events.Position, error) {
	last := c.GetHeader("Last-Event-ID")
	if last == "" {
		return h.log.Now(c.Request.Context(), workspace)
	}
	p, err := events.ParsePosition(last)
	if err != nil {
		return p, err
	}
	return p, h.log.Check(c.Request.Context(), workspace, p)
}

// stillAllowed authenticates a request again, and returns an error if it would be refused now.
func stillAllowed(c *gin.Context, tokens *wsauth.Tokens, store *workspaces.Store) error {
	_, err := tokens.Authenticate(c.Request.Context(), wsauth.WorkspaceOf(c), wsauth.Bearer(c.GetHeader("Authorization")))
	if err != nil {
		return err
	}
	return requireExistingWorkspace(c, store)
}

// A stream is the connection of one client.
type stream struct {
	*EventsHandler
	c            *gin.Context
	ctx          context.Context // it lives as long as the request
	workspace    uuid.UUID
	position     events.Position
	subscription *notify.Subscription
	writeErr     error // the first error of a write; nothing is written after it
}

// run sends events. It returns nil if the client has disconnected or the platform stops.
func (s *stream) run() error {
	// The position is sent first, so that a client that is disconnected before the first event can resume
	// too. An id without data is no event.
	retry := s.intervals.retry/2 + time.Duration(rand.Int64N(int64(s.intervals.retry)))
	s.write(fmt.Appendf(nil, "retry: %d\nid: %s\n\n", retry.Milliseconds(), s.position))
	nextPoll, lastPoll := time.Now(), time.Time{} // of the events; after the first, when the hub wakes the stream
	nextHeartbeat, nextCheck := nextPoll.Add(s.intervals.heartbeat), nextPoll.Add(s.intervals.recheck)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for s.writeErr == nil {
		now := time.Now()
		if !now.Before(nextCheck) {
			if err := stillAllowed(s.c, s.tokens, s.workspaces); err != nil {
				return err
			}
			nextCheck = now.Add(s.intervals.recheck)
		}
		if !now.Before(nextPoll) {
			sent, more, err := s.sendEvents()
			if err != nil {
				return err
			}
			lastPoll = now
			if nextPoll = now.Add(untilWoken); more {
				nextPoll = now
			}
			if sent {
				nextHeartbeat = now.Add(s.intervals.heartbeat)
			}
		}
		if !now.Before(nextHeartbeat) {
			s.write([]byte(":\n\n"))
			nextHeartbeat = now.Add(s.intervals.heartbeat)
		}
		timer.Reset(min(time.Until(nextPoll), time.Until(nextHeartbeat), time.Until(nextCheck)))
		select {
		case <-s.ctx.Done():
			return nil
		case <-s.hub.Done():
			return nil
		case <-timer.C:
		case <-s.subscription.Wake():
			kinds := s.subscription.Take()
			if kinds&notify.Access != 0 {
				nextCheck = now
			}
			if earliest := lastPoll.Add(s.intervals.coalesce); kinds&^notify.Access != 0 && earliest.Before(nextPoll) {
				nextPoll = earliest
			}
		}
	}
	return nil
}

// sendEvents sends the events after the position, and reports whether there were any and whether there may
// be more.
func (s *stream) sendEvents() (sent, more bool, err error) {
	var events []events.Event
	err = connected(s.ctx, s.c, s.workspace, func() (err error) {
		events, more, err = s.log.After(s.ctx, s.workspace, s.position, eventsPageSize)
		return err
	})
	if errors.Is(err, fairshare.ErrSaturated) { // a stream that is open is not cut; it reads later
		return false, false, nil
	}
	if err != nil || len(events) == 0 {
		return false, more, err
	}
	var b bytes.Buffer
	for _, e := range events {
		data, err := marshal(viewEvent(e))
		if err != nil {
			return false, false, err
		}
		fmt.Fprintf(&b, "event: %s\nid: %s\ndata: %s\n\n", e.Kind, e.Position, data)
	}
	s.write(b.Bytes())
	s.position = events[len(events)-1].Position
	return true, more, nil
}

// write writes and flushes b.
func (s *stream) write(b []byte) {
	if s.writeErr == nil {
		_, s.writeErr = s.c.Writer.Write(b)
	}
	if s.writeErr == nil {
		s.writeErr = http.NewResponseController(s.c.Writer).Flush()
	}
}

type fileEvent struct {
	FileID uuid.UUID   `json:"file_id"`
	Name   string      `json:"name"`
	Size   int64       `json:"size"`
	State  events.Kind `json:"state"`
	At     time.Time   `json:"at"`
	RowID  uuid.UUID   `json:"row_id,omitzero"` // of a staged file
	Seq    int64       `json:"seq,omitzero"`    // of a staged file
}

type messageEvent struct {
	RowID    uuid.UUID  `json:"row_id"`
	Seq      int64      `json:"seq"`
	Method   string     `json:"method"`
	SourceID *uuid.UUID `json:"source_id"`
	At       time.Time  `json:"at"`
}

func viewEvent(e events.Event) any {
	switch e.Kind {
	case events.Message:
		view := messageEvent{RowID: e.RowID, Seq: e.Row, Method: e.Method, At: e.At}
		if e.Source.Valid {
			view.SourceID = &e.Source.UUID
		}
		return view
	case events.Staged:
		return fileEvent{FileID: e.FileID, Name: e.Name, Size: e.Size, State: e.State, At: e.At, RowID: e.RowID, Seq: e.Row}
	default:
		return fileEvent{FileID: e.FileID, Name: e.Name, Size: e.Size, State: e.State, At: e.At}
	}
}
