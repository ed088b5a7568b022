//go:build linux

package main

import (
	"fmt"
	"net/http"
	"time"
)

const (
	// margin is the time before and after a fault in which failures are still excused.
	margin = 2 * time.Second

	// clockMargin is the maximum difference between the database's clock and the clients'.
	clockMargin = 100 * time.Millisecond

	// heldLimit is the maximum time after which a held poll must return a new row. Without a notification the platform
	// finds it by polling every 5 s.
	heldLimit = 8 * time.Second
)

// judge compares what was answered with what was seen. It runs when all clients and platforms have stopped.
type judge struct {
	history *history
	windows []window
	all     []*workspace
}

func (j *judge) run() {
	j.failures()
	for _, w := range j.all {
		w.mu.Lock()
		j.inbox(w)
		j.uploads(w)
		j.messages(w)
		for _, f := range w.files {
			j.file(w, f)
		}
		j.held(w)
		w.mu.Unlock()
	}
}

// excused reports whether a fault that affects the replica excuses a failure in that time.
func (j *judge) excused(replica int, start, end time.Time) bool {
	for _, w := range j.windows {
		if !w.affects(replica) || w.begin.Add(-margin).After(end) {
			continue
		}
		if w.recovered.IsZero() || !w.recovered.Add(margin).Before(start) {
			return true
		}
	}
	return false
}

func (w window) affects(replica int) bool {
	for _, r := range w.replicas {
		if r == replica {
			return true
		}
	}
	return w.kind == finale
}

// failures reports the operations that failed without a fault.
func (j *judge) failures() {
	for _, op := range j.history.unexplained {
		if !j.excused(op.Replica, op.Start, op.End) && !j.swept(op) {
			j.history.problem(unexpected, "%s of workspace %d through platform %d at %s failed after %s without a fault: %d %s %s",
				op.Kind, op.Workspace, op.Replica, op.Start.Format("15:04:05.000"), op.End.Sub(op.Start).Round(time.Millisecond), op.Status, op.Error, op.Answer)
		}
	}
}

// swept reports whether the file may have been swept during the download, which then ends short.
func (j *judge) swept(op operation) bool {
	if op.Kind != kindFetch || op.Status != http.StatusOK && op.Status != http.StatusPartialContent {
		return false
	}
	w := j.all[op.Workspace]
	w.mu.Lock()
	f := w.files[op.About]
	w.mu.Unlock()
	if f == nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return op.End.After(f.expires.Add(-clockMargin)) || f.ackedBy(op.End, event{})
}

// ackedBy reports whether the file may have been acknowledged before end, other than by the event but. The caller holds
// f.mu.
func (f *file) ackedBy(end time.Time, but event) bool {
	for _, e := range f.events {
		if e.ack && e != but && e.outcome != refused && e.start.Before(end) {
			return true
		}
	}
	return false
}

// inbox checks that every row has one id and one number, and that rows are in the order of time.
func (j *judge) inbox(w *workspace) {
	ids := map[string]int64{}
	for i, r := range w.rows {
		if first, twice := ids[r.id]; twice {
			j.history.problem(unexpected, "workspace %d saw row %s as %d and as %d", w.index, r.id, first, r.seq)
		}
		ids[r.id] = r.seq
		if i > 0 && r.created.Before(w.rows[i-1].created) {
			j.history.problem(unexpected, "row %d of workspace %d is older than the one before", r.seq, w.index)
		}
	}
}

// uploads checks that an upload answered with 200 has one row for each file, consecutive and in the order of its parts,
// and that any other upload has all rows or none.
func (j *judge) uploads(w *workspace) {
	type place struct{ upload, part int }
	seen := map[place][]row{}
	for _, r := range w.rows {
		if _, u, p, good := parsePartName(r.about); good && r.file != "" {
			seen[place{u, p}] = append(seen[place{u, p}], r)
		}
	}
	for _, u := range w.uploads {
		var first, announced int
		for i, p := range u.parts {
			rows := seen[place{u.number, i}]
			announced += min(len(rows), 1)
			if len(rows) > 1 {
				j.history.problem(unexpected, "%s was announced %d times", p.name, len(rows))
			}
			if len(rows) == 0 {
				if u.outcome == ok {
					j.history.problem(lost, "%s was answered with 200 and never announced", p.name)
				}
				continue
			}
			if u.outcome == ok && rows[0].file != u.ids[i] {
				j.history.problem(corrupt, "%s was answered as file %s and announced as %s", p.name, u.ids[i], rows[0].file)
			}
			if i == 0 {
				first = int(rows[0].seq)
			} else if rows[0].seq != int64(first+i) && announced == i+1 {
				j.history.problem(unexpected, "%s is row %d, and the first of its upload is row %d", p.name, rows[0].seq, first)
			}
		}
		switch {
		case u.outcome == refused && announced > 0:
			j.history.problem(unexpected, "upload %s was refused, and %d of its files announced", u.parts[0].name, announced)
		case u.outcome == unknown && announced != 0 && announced != len(u.parts):
			j.history.problem(lost, "of upload %s %d of %d files were announced", u.parts[0].name, announced, len(u.parts))
		}
	}
}

// messages checks that a message answered with 200 has one row, and any other at most one.
func (j *judge) messages(w *workspace) {
	seen := map[string]int{}
	for _, r := range w.rows {
		if r.file == "" {
			seen[r.about]++
		}
	}
	for _, m := range w.messages {
		n := seen[m.id]
		delete(seen, m.id)
		switch {
		case n > 1:
			j.history.problem(unexpected, "message %s is in the inbox %d times", m.id, n)
		case n == 0 && m.outcome == ok:
			j.history.problem(lost, "message %s was answered with 200 and is not in the inbox", m.id)
		case n > 0 && m.outcome == refused:
			j.history.problem(unexpected, "message %s was refused and is in the inbox", m.id)
		}
	}
	for id := range seen {
		j.history.problem(unexpected, "workspace %d has message %q, which no client sent", w.index, id)
	}
}

// file checks that the file could be read until it was acknowledged or expired, and not after it had expired. Contents
// were compared at download.
func (j *judge) file(w *workspace, f *file) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.events {
		if e.outcome == unknown {
			continue
		}
		maybeAcked := f.ackedBy(e.end, e)
		what := "fetch"
		if e.ack {
			what = "ack"
		}
		switch {
		case e.outcome == refused && e.status == http.StatusNotFound && !maybeAcked && e.end.Before(f.expires.Add(-clockMargin)):
			j.history.problem(lost, "%s of file %s of workspace %d (%s) at %s: 404, though it was never acknowledged and expires at %s",
				what, f.id, w.index, f.part().name, e.start.Format(time.TimeOnly), f.expires.Local().Format(time.TimeOnly))
		case e.outcome == ok && !maybeAcked && e.start.After(f.expiresLatest.Add(clockMargin)):
			j.history.problem(unexpected, "%s of file %s of workspace %d succeeded at %s, though it expired at %s",
				what, f.id, w.index, e.start.Format(time.TimeOnly), f.expiresLatest.Local().Format(time.TimeOnly))
		}
	}
}

// held checks that a held poll returned within heldLimit of a new row or, if there was a fault then, of its end.
func (j *judge) held(w *workspace) {
	for _, h := range w.held {
		for _, r := range w.rows {
			if r.seq <= h.after || r.created.After(h.end) {
				continue
			}
			since := j.intactFrom(h.replica, later(r.created, h.start))
			if late := h.end.Sub(since); late > heldLimit {
				j.history.problem(unexpected, "a poll of workspace %d held by platform %d did not return row %d for %s",
					w.index, h.replica, r.seq, late.Round(time.Millisecond))
			}
		}
	}
}

// intactFrom returns the first time from t on that is followed by heldLimit without a fault that affects the replica.
func (j *judge) intactFrom(replica int, t time.Time) time.Time {
	for _, w := range j.windows { // in the order of time
		if w.affects(replica) && w.begin.Before(t.Add(heldLimit)) {
			t = later(t, w.recovered)
		}
	}
	return t
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// checkLive checks that every file that was not acknowledged and has not expired can be read now. It returns their
// number.
func (l *load) checkLive(w *workspace, deadline time.Time) (n int) {
	w.mu.Lock()
	var files []*file
	for _, r := range w.rows {
		if f := w.files[r.file]; f != nil && f.expires.After(deadline) && !f.ackTried() {
			files = append(files, f)
		}
	}
	w.mu.Unlock()
	for i, f := range files {
		if a := l.readAs(w, i%len(l.clients.replicas), f, 0, f.part().size, 0); a.Outcome == ok {
			n++
		} else if a.Status != http.StatusNotFound { // the judge handles a 404
			l.history.problem(lost, "file %s of workspace %d cannot be read at the end: %d %s", f.id, w.index, a.Status, a.Error)
		}
	}
	return n
}

func (f *file) ackTried() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.events {
		if e.ack {
			return true
		}
	}
	return false
}

// recovery returns the longest time between the end of a fault and the first success, of both kinds.
func recovery(windows []window) (platform, postgres time.Duration) {
	for _, w := range windows {
		took := w.recovered.Sub(w.end)
		switch {
		case w.kind == finale:
		case w.postgres:
			postgres = max(postgres, took)
		default:
			platform = max(platform, took)
		}
	}
	return platform, postgres
}

func short(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
