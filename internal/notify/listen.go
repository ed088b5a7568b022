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

// channel is the NOTIFY channel that the replicas of one database share.
const channel = "molecule_news"

const (
	// sendDelay is how long a change waits for others to share its NOTIFY.
	sendDelay = 2 * time.Millisecond

	sendTimeout = 5 * time.Second

	// The LISTEN connection is reopened with exponential backoff between these bounds.
	reconnectMin, reconnectMax = 250 * time.Millisecond, 30 * time.Second

	// Every probeInterval the hub notifies itself. If that does not arrive within probeTimeout, the
	// connection is dead, or a pooler delivers no notifications on it.
	probeInterval, probeTimeout = 30 * time.Second, 5 * time.Second

	sqlNotify = `SELECT pg_notify($1, $2)`
)

// A payload is a version, the id of the hub that sends it, and an entry for each workspace: its id
// and the kinds. PostgreSQL limits a payload to less than 8,000 bytes.
const (
	payloadVersion = '1'
	idBytes        = 6
	idChars        = 8
	headerChars    = 1 + idChars
	entryChars     = 23 // of which 22 are the id
	maxEntries     = (7999 - headerChars) / entryChars
)

var encoding = base64.RawURLEncoding

func newID() string {
	b := make([]byte, idBytes)
	rand.Read(b) // never fails
	return encoding.EncodeToString(b)
}

// formatPayloads formats changes as few payloads as possible, at least one.
func formatPayloads(id string, changes map[uuid.UUID]Kind) []string {
	var all []string
	b, entries := append([]byte{payloadVersion}, id...), 0
	for workspace, kinds := range changes {
		if entries == maxEntries {
			all, b, entries = append(all, string(b)), b[:headerChars], 0
		}
		b = append(encoding.AppendEncode(b, workspace[:]), '0'+byte(kinds))
		entries++
	}
	return append(all, string(b))
}

// parsePayload calls f for each workspace of a payload and returns the id of its sender, "" if the
// format is not this version's.
func parsePayload(payload string, f func(uuid.UUID, Kind)) string {
	if len(payload) < headerChars || payload[0] != payloadVersion || (len(payload)-headerChars)%entryChars != 0 {
		return ""
	}
	for entries := payload[headerChars:]; entries != ""; entries = entries[entryChars:] {
		var workspace uuid.UUID
		kinds := Kind(entries[entryChars-1] - '0')
		if n, err := encoding.Decode(workspace[:], []byte(entries[:entryChars-1])); err != nil || n != len(workspace) || kinds > allKinds {
			continue
		}
		f(workspace, kinds)
	}
	return payload[1:headerChars]
}

// sendLoop sends to other replicas what was published on this one.
func (h *Hub) sendLoop(ctx context.Context) {
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.sendReady:
		}
		if !sleep(ctx, sendDelay) {
			return
		}
		h.mu.Lock()
		changes := h.unsent
		h.unsent = map[uuid.UUID]Kind{}
		h.mu.Unlock()
		err := h.send(ctx, changes)
		if err != nil && !failing && ctx.Err() == nil {
			h.options.Log.WarnContext(ctx, "NOTIFY failed; other replicas poll every 5 s", "error", err)
		}
		failing = err != nil
	}
}

// send sends changes; without any it sends a payload that has the sender's id only.
func (h *Hub) send(ctx context.Context, changes map[uuid.UUID]Kind) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	for _, payload := range formatPayloads(h.id, changes) {
		if _, err := h.options.DB.ExecContext(ctx, sqlNotify, channel, payload); err != nil {
			return err
		}
	}
	return nil
}

var errNotDelivered = errors.New("notify: no notification arrived on the LISTEN connection; a pooler in transaction mode delivers none")

// listenLoop keeps a LISTEN connection open, and reconnects when it is lost. It logs the first
// failure of a series only.
func (h *Hub) listenLoop(ctx context.Context) {
	pause, warned := reconnectMin, false
	for {
		delivered, err := h.listen(ctx)
		if ctx.Err() != nil {
			return
		}
		if delivered {
			pause, warned = reconnectMin, false
		}
		if !warned {
			warned = true
			h.options.Log.WarnContext(ctx, "LISTEN connection lost; changes on other replicas are polled every 5 s", "error", err)
		}
		if !sleep(ctx, jitter(pause)) {
			return
		}
		pause = min(2*pause, reconnectMax)
	}
}

// listen listens on one connection until it is lost, and reports whether it delivered a
// notification.
//
// pq.Listener reconnects by itself, but cannot be stopped while it connects or sleeps, and does not
// detect a connection that delivers no notifications.
func (h *Hub) listen(ctx context.Context) (delivered bool, err error) {
	notifications := make(chan *pq.Notification, 32)
	conn, err := pq.NewListenerConn(h.options.DSN, notifications)
	if err != nil {
		return false, err
	}
	defer func() {
		_ = conn.Close()
		for range notifications { // until the connection's goroutine has ended
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	// A server that does not answer LISTEN must not block Run.
	listenDeadline := time.AfterFunc(probeTimeout, func() { _ = conn.Close() })
	_, err = conn.Listen(channel)
	listenDeadline.Stop()
	if err != nil {
		return false, err
	}
	probe, probeDeadline := time.NewTimer(0), time.NewTimer(0)
	defer probe.Stop()
	defer probeDeadline.Stop()
	probeDeadline.Stop()
	for {
		select {
		case notification, open := <-notifications:
			if !open {
				return delivered, conn.Err()
			}
			if h.receive(notification) {
				probeDeadline.Stop()
				delivered = true
			}
		case <-probe.C:
			probe.Reset(jitter(probeInterval))
			if h.send(ctx, nil) == nil { // a probe that was not sent proves nothing
				probeDeadline.Reset(probeTimeout)
			}
		case <-probeDeadline.C:
			return delivered, errNotDelivered
		}
	}
}

// receive wakes the subscriptions that a notification names, and reports whether this hub sent it:
// Publish has woken its subscriptions already.
func (h *Hub) receive(notification *pq.Notification) (own bool) {
	if notification == nil || notification.Channel != channel {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(notification.Extra) >= headerChars && notification.Extra[1:headerChars] == h.id {
		return true
	}
	parsePayload(notification.Extra, h.wake)
	return false
}
