//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// An outcome is what a client knows when an operation is over.
type outcome string

const (
	ok      outcome = "ok"      // it was done
	refused outcome = "refused" // it was not done
	unknown outcome = "unknown" // one of the two
)

// An operation is a line of the history.
type operation struct {
	Kind      string    `json:"kind"`
	Workspace int       `json:"workspace"`
	Replica   int       `json:"replica"`
	Start     time.Time `json:"start"`
	End       time.Time `json:"end"`
	Outcome   outcome   `json:"outcome"`
	Status    int       `json:"status,omitempty"`
	About     string    `json:"about,omitempty"` // the upload, file or cursor
	Error     string    `json:"error,omitempty"`
	Answer    string    `json:"answer,omitempty"` // of what was not done

	cut bool // by the client, on purpose
}

// A verdict is what a broken promise is counted as.
type verdict string

const (
	lost       verdict = "lost"       // what should be there is not
	corrupt    verdict = "corrupt"    // it is there, but not as it was sent
	crossed    verdict = "crossed"    // it is there for others
	unexpected verdict = "unexpected" // what should not be, is
)

var verdicts = []verdict{lost, corrupt, crossed, unexpected}

// history keeps what happened, on disk and, as far as it is judged in the end, in memory.
type history struct {
	mu          sync.Mutex
	file        *os.File
	buffer      *bufio.Writer
	failed      error
	counts      map[string]map[outcome]int
	unexplained []operation // that nothing but a fault excuses
	acked       int         // files that a workspace was told are acknowledged
	problems    map[verdict]int
	first       []string // of the problems
}

// shownProblems is how many are printed; the rest is in the history.
const shownProblems = 25

func newHistory(path string) (*history, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return &history{
		file: f, buffer: bufio.NewWriterSize(f, 1<<20), counts: map[string]map[outcome]int{}, problems: map[verdict]int{},
	}, nil
}

func (h *history) record(op operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.counts[op.Kind] == nil {
		h.counts[op.Kind] = map[outcome]int{}
	}
	h.counts[op.Kind][op.Outcome]++
	if op.Outcome == unknown && !op.cut {
		h.unexplained = append(h.unexplained, op)
	}
	h.write(op)
}

// write adds a line. h.mu is held.
func (h *history) write(v any) {
	line, err := json.Marshal(v)
	if err == nil {
		_, err = h.buffer.Write(append(line, '\n'))
	}
	h.failed = errors.Join(h.failed, err)
}

// countAcked counts a file that a workspace was told is acknowledged.
func (h *history) countAcked() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acked++
}

func (h *history) problem(v verdict, format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.problems[v]++
	text := fmt.Sprintf(format, args...)
	if len(h.first) < shownProblems {
		h.first = append(h.first, fmt.Sprintf("%s: %s", v, text))
	}
	h.write(map[string]any{"problem": v, "text": text, "at": time.Now()})
}

// fault notes what is broken, when that begins and when it has passed.
func (h *history) fault(w window) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.write(map[string]any{"fault": w.kind, "replicas": w.replicas, "at": time.Now(), "passed": !w.recovered.IsZero()})
}

// total is the number of operations, and of those with that outcome.
func (h *history) total() (all int, by map[outcome]int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	by = map[outcome]int{}
	for _, kind := range h.counts {
		for o, n := range kind {
			all += n
			by[o] += n
		}
	}
	return all, by
}

func (h *history) broken() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, p := range h.problems {
		n += p
	}
	return n
}

func (h *history) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return errors.Join(h.failed, h.buffer.Flush(), h.file.Close())
}
