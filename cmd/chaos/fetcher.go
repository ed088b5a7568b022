//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

// A fetcher downloads and acknowledges the announced files of a queue. Some it leaves to expire.
type fetcher struct {
	*load
	w   *workspace
	rng *rand.Rand
}

func (f *fetcher) run(queue <-chan *file) {
	for file := range queue {
		if f.rng.IntN(12) == 0 {
			f.w.keep(file) // never acknowledged, so that it must be readable until it expires
			continue
		}
		if f.obtain(file) {
			f.acknowledge(file)
		}
	}
}

// obtain downloads a whole file, in one of the ways that clients do. It gives up when the file is gone.
func (f *fetcher) obtain(file *file) bool {
	size := file.part().size
	for {
		var a answer
		switch way := f.rng.IntN(10); {
		case way == 0 && size > 1: // a part, and then the rest
			first := f.rng.Int64N(size-1) + 1
			if a = f.read(file, 0, first, 0); a.Outcome == ok {
				a = f.read(file, first, size, 0)
			}
		case way == 1 && size > 1: // closes the connection midway, and starts again
			f.read(file, 0, size, f.rng.Int64N(size-1)+1)
			a = f.read(file, 0, size, 0)
		default:
			a = f.read(file, 0, size, 0)
		}
		switch a.Outcome {
		case ok:
			return true
		case refused:
			return false // the judge decides whether the refusal was right
		}
		time.Sleep(time.Duration(100+f.rng.IntN(200)) * time.Millisecond)
		if f.expired(file) {
			return false
		}
	}
}

// expired reports whether the file has certainly expired.
func (l *load) expired(f *file) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().After(f.expiresLatest.Add(time.Second))
}

// readAs reads the bytes from one offset to another and compares them. Unless cutAfter is 0, it closes the connection
// after so many bytes.
func (l *load) readAs(w *workspace, replica int, file *file, from, to, cutAfter int64) answer {
	p := file.part()
	r := request{
		kind: kindFetch, replica: replica, w: w, path: contentPath(w.id, file.id), about: file.id,
		allowed: okOrGone, cutAfter: cutAfter,
	}
	status := http.StatusOK
	if from > 0 || to < p.size {
		status = http.StatusPartialContent
		r.header = http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", from, to-1)}, "If-Range": {`"` + p.sha256 + `"`}}
		r.allowed = []int{http.StatusPartialContent, http.StatusNotFound}
	}
	a := l.clients.do(context.Background(), r)
	file.note(false, a)
	if a.Outcome != ok && !a.cut {
		return a
	}
	want := p.content()[from:to]
	if a.cut {
		want = want[:min(len(a.body), len(want))]
	}
	if a.Outcome == ok && a.Status != status || !bytes.Equal(a.body, want) {
		sum := sha256.Sum256(a.body)
		stamp, _, _ := strings.Cut(string(a.body[:min(len(a.body), 40)]), "\n")
		l.history.problem(corrupt, "file %s (%+v), bytes %d to %d: answered %d with %d bytes, SHA-256 %s, beginning with %q",
			file.id, p, from, to, a.Status, len(a.body), hex.EncodeToString(sum[:]), stamp)
	}
	return a
}

func (f *fetcher) read(file *file, from, to, cutAfter int64) answer {
	return f.readAs(f.w, f.replica(f.rng), file, from, to, cutAfter)
}

// acknowledge sends acks until one is answered, and sometimes one more.
func (f *fetcher) acknowledge(file *file) {
	for {
		a := f.ack(file)
		if a.Outcome == ok {
			f.history.countAcked()
		}
		if a.Outcome != unknown || f.expired(file) {
			break
		}
		time.Sleep(time.Duration(100+f.rng.IntN(200)) * time.Millisecond)
	}
	switch f.rng.IntN(12) {
	case 0:
		f.ack(file)
	case 1:
		f.read(file, 0, file.part().size, 0) // reads after the ack, like a reloaded canvas
	case 2:
		done := make(chan struct{})
		replica := f.replica(f.rng)
		go func() {
			defer close(done)
			f.ackAs(f.w, replica, file)
		}()
		f.ack(file)
		<-done
	}
}

func (f *fetcher) ack(file *file) answer { return f.ackAs(f.w, f.replica(f.rng), file) }

func (l *load) ackAs(w *workspace, replica int, file *file) answer {
	a := l.clients.do(context.Background(), request{
		kind: kindAck, replica: replica, w: w, method: http.MethodPost, path: ackPath(w.id, file.id), about: file.id, allowed: okOrGone,
	})
	file.note(true, a)
	return a
}

// probeAccess reads files that are never acknowledged, before and after they expire, and sends requests that must be
// refused.
func (l *load) probeAccess(ctx context.Context, rng *rand.Rand, w *workspace) {
	for pause(ctx, rng, l.pace) {
		replica := l.replica(rng)
		other := l.all[rng.IntN(len(l.all))]
		if rng.IntN(2) == 0 {
			if f := w.kept(rng); f != nil {
				l.readAs(w, replica, f, 0, f.part().size, 0)
			}
			continue
		}
		if other == w {
			continue
		}
		forbidden := request{kind: kindForbidden, replica: replica, w: w, allowed: []int{http.StatusUnauthorized}}
		switch rng.IntN(4) {
		case 0: // no token, or an invalid one
			forbidden.path, forbidden.token = "/workspaces/"+w.id+"/activity", []string{"-", "mol_ws_" + strings.Repeat("A", 43), "x"}[rng.IntN(3)]
		case 1: // this workspace's token for another workspace
			forbidden.path = []string{"/workspaces/" + other.id + "/activity", "/workspaces/" + other.id + "/pending-uploads"}[rng.IntN(2)]
		default: // another workspace's file, under this workspace's path
			f := other.kept(rng)
			if f == nil {
				continue
			}
			forbidden.about, forbidden.allowed = f.id, []int{http.StatusNotFound}
			switch rng.IntN(3) {
			case 0:
				forbidden.path = contentPath(w.id, f.id)
			case 1:
				forbidden.path = "/workspaces/" + w.id + "/pending-uploads/" + f.id
			default:
				forbidden.method, forbidden.path = http.MethodPost, ackPath(w.id, f.id)
			}
		}
		l.clients.do(ctx, forbidden)
	}
}
