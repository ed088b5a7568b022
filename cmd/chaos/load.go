//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"
)

// The kinds of operations.
const (
	kindUpload    = "upload"
	kindMessage   = "message"
	kindPoll      = "poll"
	kindFetch     = "fetch"
	kindAck       = "ack"
	kindShow      = "show"
	kindForbidden = "forbidden"
)

// load holds the clients. Each stops when its ctx is done, after the current operation.
type load struct {
	clients *clients
	history *history
	all     []*workspace
	pace    time.Duration // between two uploads of an uploader, on average
	faults  *faults
}

// pause sleeps for a random time around d. It returns false if ctx is done first.
func pause(ctx context.Context, rng *rand.Rand, d time.Duration) bool {
	return sleep(ctx, time.Duration(rng.ExpFloat64()*float64(d)))
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (l *load) replica(rng *rand.Rand) int { return rng.IntN(len(l.clients.replicas)) }

// upload sends uploads like a canvas. Some have an Idempotency-Key; those are repeated until the outcome is known, and
// sometimes once more.
func (l *load) upload(ctx context.Context, rng *rand.Rand, w *workspace) {
	for pause(ctx, rng, l.pace) {
		u := w.newUpload(rng, 1+rng.IntN(maxParts), rng.IntN(3) == 0)
		if l.sendUpload(w, u, l.replica(rng), requestTimeout) == ok && rng.IntN(2) == 0 {
			l.show(rng, w, u)
		}
		for attempt := 0; u.key != "" && attempt < 6; attempt++ {
			if u.staged() && rng.IntN(3) > 0 || !pause(ctx, rng, 300*time.Millisecond) {
				break
			}
			l.sendUpload(w, u, l.replica(rng), requestTimeout)
		}
		if u.key != "" && u.staged() && rng.IntN(8) == 0 {
			l.reuseKey(rng, w, u)
		}
	}
}

// staged reports whether the upload is known to be staged. Only its uploader may call it.
func (u *upload) staged() bool { return u.outcome == ok }

// sendUpload sends an upload once and records the answer.
func (l *load) sendUpload(w *workspace, u *upload, replica int, limit time.Duration) outcome {
	contentType, body := form(u.parts)
	r := request{
		kind: kindUpload, replica: replica, w: w, method: http.MethodPost, path: "/workspaces/" + w.id + "/chat/uploads",
		header: http.Header{"Content-Type": {contentType}}, body: body, timeout: limit, about: u.parts[0].name,
	}
	if u.key != "" {
		r.header.Set("Idempotency-Key", u.key)
		r.allowed = []int{http.StatusOK, http.StatusConflict} // an abandoned attempt may still be running
	}
	a := l.clients.do(context.Background(), r)
	if a.Outcome != ok {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !u.tried {
			u.tried, u.outcome = true, a.Outcome
		} else if u.outcome == refused {
			u.outcome = a.Outcome
		}
		return a.Outcome
	}
	select {
	case l.faults.answered <- struct{}{}:
	default:
	}
	var staged struct {
		Files []struct {
			URI     string    `json:"uri"`
			Name    string    `json:"name"`
			Size    int64     `json:"size"`
			SHA256  string    `json:"sha256"`
			Expires time.Time `json:"expires_at"`
		} `json:"files"`
	}
	if err := json.Unmarshal(a.body, &staged); err != nil || len(staged.Files) != len(u.parts) {
		l.history.problem(unexpected, "upload %s of %d files answered %s", u.parts[0].name, len(u.parts), a.body)
		return unknown
	}
	prefix := "platform-pending:" + w.id + "/"
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := make([]string, len(u.parts))
	for i, s := range staged.Files {
		if p := u.parts[i]; s.Name != p.name || s.Size != p.size || s.SHA256 != p.sha256 || len(s.URI) != len(prefix)+36 || s.URI[:len(prefix)] != prefix {
			l.history.problem(corrupt, "upload of %+v to workspace %s answered %+v", p, w.id, s)
			continue
		}
		ids[i] = s.URI[len(prefix):]
		f := w.fileByID(ids[i], u, i)
		f.expireAt(s.Expires, s.Expires)
	}
	if u.ids != nil && !slices.Equal(u.ids, ids) {
		l.history.problem(unexpected, "upload %s was repeated with its key and answered with other files: %v, before %v", u.parts[0].name, ids, u.ids)
	}
	u.ids, u.tried, u.outcome = ids, true, ok
	return ok
}

// show requests the state of a file that was just uploaded.
func (l *load) show(rng *rand.Rand, w *workspace, u *upload) {
	w.mu.Lock()
	f := w.files[u.ids[rng.IntN(len(u.ids))]]
	w.mu.Unlock()
	if f == nil {
		return // the answer was wrong, which is already reported
	}
	a := l.clients.do(context.Background(), request{
		kind: kindShow, replica: l.replica(rng), w: w, path: "/workspaces/" + w.id + "/pending-uploads/" + f.id, about: f.id, allowed: okOrGone,
	})
	f.note(false, a)
}

// reuseKey sends another file with a key that was already used.
func (l *load) reuseKey(rng *rand.Rand, w *workspace, u *upload) {
	other := newPart(rng, u.parts[0].name)
	if len(u.parts) == 1 && other.sha256 == u.parts[0].sha256 {
		return // by chance the same file
	}
	contentType, body := form([]part{other})
	l.clients.do(context.Background(), request{
		kind: kindUpload, replica: l.replica(rng), w: w, method: http.MethodPost, path: "/workspaces/" + w.id + "/chat/uploads",
		header: http.Header{"Content-Type": {contentType}, "Idempotency-Key": {u.key}}, body: body, about: u.parts[0].name + " other files",
		allowed: []int{http.StatusUnprocessableEntity, http.StatusConflict},
	})
}

// message sends messages, each once.
func (l *load) message(ctx context.Context, rng *rand.Rand, w *workspace) {
	for n := 0; pause(ctx, rng, 2*l.pace); n++ {
		l.sendMessage(w, fmt.Sprintf("w%d-m%d", w.index, n), l.replica(rng))
	}
}

// sendToQuiet sends to a quiet workspace shortly after a fault began, and otherwise rarely. A poll that is held
// meanwhile must return the row even if the notification was lost. So if one platform is cut off from the database, it
// sends through another.
func (l *load) sendToQuiet(ctx context.Context, rng *rand.Rand, w *workspace) {
	for n := 0; ; n++ {
		timer := time.NewTimer(time.Duration(12+rng.IntN(12)) * time.Second)
		replica := l.replica(rng)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-l.faults.next():
				broken := l.faults.latest()
				if cutOff := broken.postgres && len(broken.replicas) == 1; cutOff {
					replica, waiting = (broken.replicas[0]+1)%len(l.clients.replicas), !sleep(ctx, time.Duration(rng.IntN(1500))*time.Millisecond)
				} else if rng.IntN(3) == 0 {
					waiting = !sleep(ctx, time.Duration(rng.IntN(3000))*time.Millisecond)
				}
			case <-timer.C:
				waiting = false
			}
		}
		timer.Stop()
		if rng.IntN(2) == 0 {
			l.sendMessage(w, fmt.Sprintf("w%d-m%d", w.index, n), replica)
		} else {
			l.sendUpload(w, w.newUpload(rng, 1, false), replica, requestTimeout)
		}
	}
}

func (l *load) sendMessage(w *workspace, id string, replica int) {
	m := w.newMessage(id)
	body, _ := json.Marshal(map[string]any{ // cannot fail
		"jsonrpc": "2.0", "id": id, "method": "message/send",
		"params": map[string]any{"message": map[string]any{"messageId": id, "parts": []any{map[string]string{"kind": "text", "text": "from " + w.id}}}},
	})
	a := l.clients.do(context.Background(), request{
		kind: kindMessage, replica: replica, w: w, method: http.MethodPost, path: "/workspaces/" + w.id + "/a2a",
		header: http.Header{"Content-Type": {"application/json"}}, body: body, about: id,
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	m.outcome = a.Outcome
}
