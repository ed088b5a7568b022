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

// An outcome is what a client knows after an operation.
type outcome string

const (
	ok      outcome = "ok"      // it happened
	refused outcome = "refused" // it did not happen
	unknown outcome = "unknown" // it may have happened
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
	Answer    string    `json:"answer,omitempty"` // unless the outcome is ok

	cut bool // by the client, on purpose
}

// A verdict is the kind of a problem.
type verdict string

const (
	lost       verdict = "lost"       // something promised is missing
	corrupt    verdict = "corrupt"    // its content is not what was sent
	crossed    verdict = "crossed"    // another workspace can read it
	unexpected verdict = "unexpected" // any other broken promise
)

var verdicts = []verdict{lost, corrupt, crossed, unexpected}

// history records what happened, on disk and, as far as the judge needs it, in memory.
type history struct {
	mu          sync.Mutex
	file        *os.File
	buffer      *bufio.Writer
	failed      error
	counts      map[string]map[outcome]int
	unexplained []operation // failures that only a fault excuses
	acked       int         // acks that were answered with 200
	problems    map[verdict]int
	first       []string // texts of the first problems
}

// shownProblems is the number of problems that are printed; all are in the history.
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

// write appends a line. The caller holds h.mu.
func (h *history) write(v any) {
	line, err := json.Marshal(v)
	if err == nil {
		_, err = h.buffer.Write(append(line, '\n'))
	}
	h.failed = errors.Join(h.failed, err)
}

// countAcked counts an ack that was answered with 200.
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

// fault records the start and the end of a fault.
func (h *history) fault(w window) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.write(map[string]any{"fault": w.kind, "replicas": w.replicas, "at": time.Now(), "passed": !w.recovered.IsZero()})
}

// total returns the number of operations, in all and by outcome.
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
