package notify

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
)

// channel is the name under which the replicas of one database exchange news.
const channel = "molecule_news"

const (
	// gather is how long news waits for more to be told together.
	gather = 2 * time.Millisecond

	tellTimeout = 5 * time.Second

	// The listening connection is tried again after reconnectMin at first, and then after twice
	// as long each time.
	reconnectMin, reconnectMax = 250 * time.Millisecond, 30 * time.Second

	// Every probeInterval the platform tells itself something. If it does not hear it within
	// probeTimeout, the connection is dead, or it is one on which nothing is heard.
	probeInterval, probeTimeout = 30 * time.Second, 5 * time.Second

	sqlNotify = `SELECT pg_notify($1, $2)`
)

// A payload is a version, who sends it, and for each workspace its id and the kinds of news.
// PostgreSQL takes less than 8,000 bytes.
const (
	payloadVersion = '1'
	idBytes        = 6
	idChars        = 8
	headChars      = 1 + idChars
	itemChars      = 23 // of which 22 are the id
	maxItems       = (7999 - headChars) / itemChars
)

var encoding = base64.RawURLEncoding

func newID() string {
	b := make([]byte, idBytes)
	rand.Read(b) // never fails
	return encoding.EncodeToString(b)
}

// payloads puts news into as few payloads as it fits into; at least one.
func payloads(id string, news map[uuid.UUID]Kind) []string {
	var all []string
	b, items := append([]byte{payloadVersion}, id...), 0
	for workspace, kinds := range news {
		if items == maxItems {
			all, b, items = append(all, string(b)), b[:headChars], 0
		}
		b = append(encoding.AppendEncode(b, workspace[:]), '0'+byte(kinds))
		items++
	}
	return append(all, string(b))
}

// unpack calls f for each workspace of a payload and returns who sent it; "" if it is not one
// that this version understands.
func unpack(payload string, f func(uuid.UUID, Kind)) string {
	if len(payload) < headChars || payload[0] != payloadVersion || (len(payload)-headChars)%itemChars != 0 {
		return ""
	}
	for items := payload[headChars:]; items != ""; items = items[itemChars:] {
		var workspace uuid.UUID
		kinds := Kind(items[itemChars-1] - '0')
		if n, err := encoding.Decode(workspace[:], []byte(items[:itemChars-1])); err != nil || n != len(workspace) || kinds > all {
			continue
		}
		f(workspace, kinds)
	}
	return payload[1:headChars]
}

// tell tells other replicas what was announced here.
func (h *Hub) tell(ctx context.Context) {
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.pending:
		}
		if !sleep(ctx, gather) {
			return
		}
		h.mu.Lock()
		news := h.untold
		h.untold = map[uuid.UUID]Kind{}
		h.mu.Unlock()
		err := h.send(ctx, news)
		if err != nil && !failing && ctx.Err() == nil {
			h.options.Log.WarnContext(ctx, "other replicas cannot be told the news; they look every few seconds", "error", err)
		}
		failing = err != nil
	}
}

// send sends news; without any it sends a payload that only says who it is from.
func (h *Hub) send(ctx context.Context, news map[uuid.UUID]Kind) error {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	for _, payload := range payloads(h.id, news) {
		if _, err := h.options.DB.ExecContext(ctx, sqlNotify, channel, payload); err != nil {
			return err
		}
	}
	return nil
}

var errDeaf = errors.New("news: what was sent did not come back; a pooler in transaction mode passes no notifications")

// listen hears what other replicas tell, and connects again when the connection is lost.
func (h *Hub) listen(ctx context.Context) {
	pause, complained := reconnectMin, false
	for {
		heard, err := h.hear(ctx)
		if ctx.Err() != nil {
			return
		}
		if heard {
			pause, complained = reconnectMin, false
		}
		if !complained {
			complained = true
			h.options.Log.WarnContext(ctx, "not listening to other replicas; their news comes within seconds", "error", err)
		}
		if !sleep(ctx, jitter(pause)) {
			return
		}
		pause = min(2*pause, reconnectMax)
	}
}

// hear listens on one connection until it is lost, and reports whether anything was heard on it.
//
// pq.Listener would connect again by itself; but nothing can stop it while it connects or sleeps,
// and it cannot tell a connection on which nothing comes from one on which nothing happens.
func (h *Hub) hear(ctx context.Context) (heard bool, err error) {
	notes := make(chan *pq.Notification, 32)
	conn, err := pq.NewListenerConn(h.options.DSN, notes)
	if err != nil {
		return false, err
	}
	defer func() {
		_ = conn.Close()
		for range notes { // until the connection's goroutine has ended
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	// A server that says nothing more must not keep it either.
	patience := time.AfterFunc(probeTimeout, func() { _ = conn.Close() })
	_, err = conn.Listen(channel)
	patience.Stop()
	if err != nil {
		return false, err
	}
	probe, deadline := time.NewTimer(0), time.NewTimer(0)
	defer probe.Stop()
	defer deadline.Stop()
	deadline.Stop()
	for {
		select {
		case note, open := <-notes:
			if !open {
				return heard, conn.Err()
			}
			if h.hearNote(note) {
				deadline.Stop()
				heard = true
			}
		case <-probe.C:
			probe.Reset(jitter(probeInterval))
			if h.send(ctx, nil) == nil { // else it proves nothing
				deadline.Reset(probeTimeout)
			}
		case <-deadline.C:
			return heard, errDeaf
		}
	}
}

// hearNote wakes whom a notification concerns, and reports whether it is one that this platform
// sent: those it has acted upon already.
func (h *Hub) hearNote(note *pq.Notification) (own bool) {
	if note == nil || note.Channel != channel {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(note.Extra) >= headChars && note.Extra[1:headChars] == h.id {
		return true
	}
	unpack(note.Extra, h.wake)
	return false
}
