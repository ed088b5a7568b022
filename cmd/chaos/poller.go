//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// A poller follows the inbox of a workspace and queues its files. Like a real one it keeps its cursor on disk, and
// moves it after a page was handled.
type poller struct {
	*load
	w     *workspace
	rng   *rand.Rand
	path  string // of the cursor
	ttl   time.Duration
	queue chan *file
}

type inboxRow struct {
	ID          string    `json:"id"`
	Seq         int64     `json:"seq"`
	WorkspaceID string    `json:"workspace_id"`
	TargetID    string    `json:"target_id"`
	Method      string    `json:"method"`
	CreatedAt   time.Time `json:"created_at"`
	Body        struct {
		FileID string `json:"file_id"`
		Name   string `json:"name"`
		Size   int64  `json:"size"`
		SHA256 string `json:"sha256"`
		URI    string `json:"uri"`
		Params struct {
			Message struct {
				ID    string `json:"messageId"`
				Parts []struct {
					Text string `json:"text"`
				} `json:"parts"`
			} `json:"message"`
		} `json:"params"`
	} `json:"request_body"`
}

// A cursor is the position that survives a restart of the poller.
type cursor struct {
	ID  string `json:"id"`
	Seq int64  `json:"seq"`
}

// run polls until ctx is done and the inbox is drained; then it closes the queue.
func (p *poller) run(ctx context.Context) {
	defer close(p.queue)
	at, draining := cursor{}, false
	for empty := 0; empty < 3; {
		if ctx.Err() != nil {
			draining, ctx = true, context.Background()
		}
		rows, good := p.poll(ctx, at, draining)
		switch {
		case !good:
			time.Sleep(100 * time.Millisecond)
			continue
		case len(rows) == 0 && draining:
			empty++
		case len(rows) > 0:
			empty = 0
			p.handlePage(at, rows)
			last := rows[len(rows)-1]
			next := cursor{last.ID, last.Seq}
			if p.rng.IntN(30) == 0 {
				break // crashes before it has saved the cursor
			}
			p.save(next)
		}
		at = p.resume()
		time.Sleep(time.Duration(20+p.rng.IntN(100)) * time.Millisecond)
	}
}

// poll requests the rows after the cursor.
func (p *poller) poll(ctx context.Context, at cursor, draining bool) ([]inboxRow, bool) {
	limits := []int{1, 3, 20, 100, 500}
	query := url.Values{"type": {"a2a_receive"}, "limit": {strconv.Itoa(limits[p.rng.IntN(len(limits))])}}
	wait := 0
	switch {
	case draining:
	case p.w.quiet:
		wait = 55
	default:
		wait = p.rng.IntN(4)
	}
	if wait > 0 {
		query.Set("wait", strconv.Itoa(wait))
	}
	if at.ID == "" {
		query.Set("order", "asc")
	} else {
		query.Set("since_id", at.ID)
	}
	replica := p.replica(p.rng)
	a := p.clients.do(ctx, request{
		kind: kindPoll, replica: replica, w: p.w, path: "/workspaces/" + p.w.id + "/activity?" + query.Encode(),
		timeout: requestTimeout + time.Duration(wait)*time.Second, about: strconv.FormatInt(at.Seq, 10),
	})
	if a.Outcome != ok {
		return nil, false
	}
	var rows []inboxRow
	if err := json.Unmarshal(a.body, &rows); err != nil {
		p.history.problem(unexpected, "inbox of workspace %d: %v", p.w.index, err)
		return nil, false
	}
	if p.w.quiet && wait > 0 {
		p.w.mu.Lock()
		p.w.held = append(p.w.held, heldPoll{replica, a.Start, a.End, at.Seq})
		p.w.mu.Unlock()
	}
	return rows, true
}

// handlePage checks a page and records the new rows. A page is repeated if the poller crashed before it saved the
// cursor.
func (p *poller) handlePage(at cursor, rows []inboxRow) {
	w := p.w
	var fresh []*file
	w.mu.Lock()
	for i, r := range rows {
		want := at.Seq + 1 + int64(i)
		if r.Seq != want {
			p.history.problem(lost, "the inbox of workspace %d continues with row %d, want row %d", w.index, r.Seq, want)
		}
		if r.WorkspaceID != w.id || r.TargetID != "" && r.TargetID != w.id {
			p.history.problem(crossed, "workspace %d (%s) sees row %s of %s for %s", w.index, w.id, r.ID, r.WorkspaceID, r.TargetID)
		}
		if n := int(want) - 1; n < len(w.rows) {
			if w.rows[n].id != r.ID {
				p.history.problem(unexpected, "row %d of workspace %d is now %s, was %s", want, w.index, r.ID, w.rows[n].id)
			}
			continue
		}
		seen := row{id: r.ID, method: r.Method, seq: r.Seq, created: r.CreatedAt}
		if r.Method == "chat_upload_receive" {
			seen.about, seen.file = r.Body.Name, r.Body.FileID
			if f := p.announced(r); f != nil {
				fresh = append(fresh, f)
			}
		} else {
			seen.about = r.Body.Params.Message.ID
			if parts := r.Body.Params.Message.Parts; len(parts) != 1 || parts[0].Text != "from "+w.id {
				p.history.problem(crossed, "message %s in the inbox of workspace %d (%s) says %v", seen.about, w.index, w.id, parts)
			}
		}
		w.rows = append(w.rows, seen)
	}
	w.mu.Unlock()
	for _, f := range fresh {
		p.queue <- f
	}
}

// announced checks the row of a file and returns the file, nil if no client sent it. The caller holds w.mu.
func (p *poller) announced(r inboxRow) *file {
	w, b := p.w, r.Body
	owner, number, place, good := parsePartName(b.Name)
	if good && owner != w.index {
		p.history.problem(crossed, "workspace %d got a row for %s", w.index, b.Name)
		return nil
	}
	if !good || number >= len(w.uploads) || place >= len(w.uploads[number].parts) {
		p.history.problem(unexpected, "workspace %d got a row for %q, which no client sent", w.index, b.Name)
		return nil
	}
	u := w.uploads[number]
	if sent := u.parts[place]; b.Size != sent.size || b.SHA256 != sent.sha256 || b.URI != "platform-pending:"+w.id+"/"+b.FileID {
		p.history.problem(corrupt, "row %d of workspace %d says %+v, sent was %+v", r.Seq, w.index, b, sent)
	}
	f := w.fileByID(b.FileID, u, place)
	if f.expires.IsZero() { // written under w.mu only
		f.expireAt(u.sent.Add(p.ttl), r.CreatedAt.Add(p.ttl))
	}
	return f
}

func (p *poller) save(c cursor) {
	line, _ := json.Marshal(c) // cannot fail
	err := os.WriteFile(p.path+".new", line, 0o600)
	if err == nil {
		err = os.Rename(p.path+".new", p.path)
	}
	if err != nil {
		p.history.problem(unexpected, "chaos itself failed: %v", err)
	}
}

func (p *poller) resume() (c cursor) {
	line, err := os.ReadFile(p.path)
	if err == nil {
		err = json.Unmarshal(line, &c)
	}
	if err != nil && !os.IsNotExist(err) {
		p.history.problem(unexpected, "chaos itself failed: %v", err)
	}
	return c
}

func cursorPath(dir string, w *workspace) string {
	return filepath.Join(dir, fmt.Sprintf("cursor-%d", w.index))
}

// contentPath is the path of a file's content.
func contentPath(workspace, file string) string {
	return "/workspaces/" + workspace + "/pending-uploads/" + file + "/content"
}

func ackPath(workspace, file string) string {
	return "/workspaces/" + workspace + "/pending-uploads/" + file + "/ack"
}

var okOrGone = []int{http.StatusOK, http.StatusNotFound}
