//go:build linux

package main

import (
	"math/rand/v2"
	"sync"
	"time"
)

// A workspace records what its clients sent, and what its poller saw.
type workspace struct {
	index int
	id    string
	token string
	quiet bool // it gets little, mostly during faults, so that polls are held for long

	mu       sync.Mutex
	uploads  []*upload
	messages []*message
	rows     []row // in the order in which its poller saw them; the first has the number 1
	files    map[string]*file
	unacked  []*file // files left to expire
	held     []heldPoll
}

// An upload is one that a client sent, perhaps more than once.
type upload struct {
	number  int
	key     string // Idempotency-Key; "": none
	parts   []part
	sent    time.Time // when it was first sent
	outcome outcome   // ok if any attempt was; else unknown if any was
	tried   bool
	ids     []string // of the files, from the answer
}

// A message is one that a client sent once.
type message struct {
	id      string
	outcome outcome
}

// A row is an inbox row.
type row struct {
	id, method string
	seq        int64
	about      string // the name of a file, or the id of a message
	file       string // its id
	created    time.Time
}

// A file is one that was announced, by the answer to an upload or in the inbox.
type file struct {
	id     string
	upload *upload
	place  int
	mu     sync.Mutex
	// Earliest and latest time of expiry: equal if the upload was answered, otherwise estimated from its row.
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

// expireAt sets the earliest and latest time of expiry. The caller holds the workspace's mu.
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

// A heldPoll is a poll with a wait.
type heldPoll struct {
	replica    int
	start, end time.Time
	after      int64 // number of the row of its cursor
}

// newUpload generates an upload and records it before it is sent.
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

// fileByID returns the file with that id, and adds it if it is new. The caller holds w.mu.
func (w *workspace) fileByID(id string, u *upload, place int) *file {
	f := w.files[id]
	if f == nil {
		f = &file{id: id, upload: u, place: place}
		w.files[id] = f
	}
	return f
}

// keep adds a file that is left to expire.
func (w *workspace) keep(f *file) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unacked = append(w.unacked, f)
}

// kept returns one of the latest files that are left to expire; nil if there is none.
func (w *workspace) kept(rng *rand.Rand) *file {
	const latest = 40
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(w.unacked), latest)
	if n == 0 {
		return nil
	}
	return w.unacked[len(w.unacked)-1-rng.IntN(n)]
}
