//go:build linux

package main

import (
	"math/rand/v2"
	"sync"
	"time"
)

// A workspace is what its clients know: what they sent, and what its poller saw.
type workspace struct {
	index int
	id    string
	token string
	quiet bool // little is sent, mostly while something is broken, and polls are held for long

	mu       sync.Mutex
	uploads  []*upload
	messages []*message
	rows     []row // as its poller saw them; the first has number 1
	files    map[string]*file
	keeps    []*file // files that are never acknowledged
	held     []heldPoll
}

// An upload is one that a client sent, perhaps more than once.
type upload struct {
	number  int
	key     string // of idempotency; "": none
	parts   []part
	sent    time.Time // when it was first sent
	outcome outcome   // ok if any attempt was; else unknown if any was
	tried   bool
	ids     []string // the files of the answer
}

// A message is one that a client sent once.
type message struct {
	id      string
	outcome outcome
}

// A row is one of the inbox.
type row struct {
	id, method string
	seq        int64
	about      string // the name of a file, or the id of a message
	file       string // its id
	created    time.Time
}

// A file is one that was announced, by an answer or in the inbox.
type file struct {
	id     string
	upload *upload
	place  int
	mu     sync.Mutex
	// When it expires: by the answer to its upload, or as far as its row lets one tell.
	expires, expiresLatest time.Time
	events                 []event
}

// An event is an attempt to read or acknowledge a file.
type event struct {
	ack        bool
	start, end time.Time
	outcome    outcome
	status     int
}

func (f *file) part() part { return f.upload.parts[f.place] }

// expireAt notes between when and when it expires. The caller holds the workspace's mu.
func (f *file) expireAt(earliest, latest time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expires, f.expiresLatest = earliest, latest
}

func (f *file) note(ack bool, a answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, event{ack: ack, start: a.Start, end: a.End, outcome: a.Outcome, status: a.Status})
}

// A heldPoll is one that waited for something to come.
type heldPoll struct {
	replica    int
	start, end time.Time
	after      int64 // the number of the last row known
}

// newUpload draws an upload and remembers that it is going to be sent.
func (w *workspace) newUpload(rng *rand.Rand, parts int, key bool) *upload {
	w.mu.Lock()
	u := &upload{number: len(w.uploads)}
	w.uploads = append(w.uploads, u)
	w.mu.Unlock()
	if key {
		u.key = partName(w.index, u.number, 0) + "-key"
	}
	made := make([]part, parts)
	for i := range made {
		made[i] = newPart(rng, partName(w.index, u.number, i))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	u.parts, u.sent, u.outcome = made, time.Now(), unknown
	return u
}

func (w *workspace) newMessage(id string) *message {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := &message{id: id, outcome: unknown}
	w.messages = append(w.messages, m)
	return m
}

// known returns the file with that id, made at need. The caller holds w.mu.
func (w *workspace) fileByID(id string, u *upload, place int) *file {
	f := w.files[id]
	if f == nil {
		f = &file{id: id, upload: u, place: place}
		w.files[id] = f
	}
	return f
}

// keep remembers a file that is to expire.
func (w *workspace) keep(f *file) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keeps = append(w.keeps, f)
}

// kept returns one of the latest files that are to expire; nil if there is none.
func (w *workspace) kept(rng *rand.Rand) *file {
	const latest = 40
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(w.keeps), latest)
	if n == 0 {
		return nil
	}
	return w.keeps[len(w.keeps)-1-rng.IntN(n)]
}
