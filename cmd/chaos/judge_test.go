//go:build linux

package main

import (
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// Each case plants one problem in a correct history. The judge must report exactly that problem.
func TestJudge_ReportsExactlyThePlantedProblem(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	add := func(f *file, events ...event) { f.events = append(f.events, events...) }
	for _, c := range []struct {
		name  string
		wrong func(w *workspace, j *judge)
		want  map[verdict]int
	}{
		{"nothing", func(*workspace, *judge) {}, nil},
		{"a file answered with 200 was never announced", func(w *workspace, _ *judge) { w.rows = w.rows[:3] }, map[verdict]int{lost: 1}},
		{"an upload was announced in part", func(w *workspace, _ *judge) {
			w.uploads[1].outcome = unknown
			w.rows = w.rows[:3]
		}, map[verdict]int{lost: 1}},
		{"an upload with unknown outcome was not announced", func(w *workspace, _ *judge) {
			w.uploads[1].outcome = unknown
			w.rows = w.rows[:2]
		}, nil},
		{"a refused upload was announced", func(w *workspace, _ *judge) { w.uploads[1].outcome = refused }, map[verdict]int{unexpected: 1}},
		{"a file was announced twice", func(w *workspace, _ *judge) {
			again := w.rows[3]
			again.id, again.seq, again.file = "r5", 5, "again"
			w.rows = append(w.rows, again)
		}, map[verdict]int{unexpected: 1}},
		{"a row was shown twice", func(w *workspace, _ *judge) { w.rows = append(w.rows, w.rows[0]) }, map[verdict]int{unexpected: 3}},
		{"the parts were announced in another order", func(w *workspace, _ *judge) {
			w.rows[2].about, w.rows[3].about = w.rows[3].about, w.rows[2].about
			w.rows[2].file, w.rows[3].file = w.rows[3].file, w.rows[2].file
		}, map[verdict]int{unexpected: 1}},
		{"a file was announced under another id", func(w *workspace, _ *judge) { w.rows[1].file = "other" }, map[verdict]int{corrupt: 1}},
		{"a message answered with 200 is missing", func(w *workspace, _ *judge) { w.messages[0].id = "m2" }, map[verdict]int{lost: 1, unexpected: 1}},
		{"a file is gone before it expires", func(w *workspace, _ *judge) {
			add(w.files["b"], event{start: at(20), end: at(21), outcome: refused, status: http.StatusNotFound})
		}, map[verdict]int{lost: 1}},
		{"a file is gone after it has expired", func(w *workspace, _ *judge) {
			add(w.files["b"], event{start: at(61), end: at(62), outcome: refused, status: http.StatusNotFound})
		}, nil},
		{"a file is gone after it was perhaps acknowledged", func(w *workspace, _ *judge) {
			add(w.files["b"], event{ack: true, start: at(20), end: at(21), outcome: unknown},
				event{start: at(22), end: at(23), outcome: refused, status: http.StatusNotFound})
		}, nil},
		{"an ack of a file that is there finds none", func(w *workspace, _ *judge) {
			add(w.files["b"], event{ack: true, start: at(20), end: at(21), outcome: refused, status: http.StatusNotFound})
		}, map[verdict]int{lost: 1}},
		{"an expired file can be read", func(w *workspace, _ *judge) {
			add(w.files["b"], event{start: at(62), end: at(63), outcome: ok})
		}, map[verdict]int{unexpected: 1}},
		{"an expired file can be acknowledged", func(w *workspace, _ *judge) {
			add(w.files["b"], event{ack: true, start: at(62), end: at(63), outcome: ok})
		}, map[verdict]int{unexpected: 1}},
		{"a failure without a fault", func(_ *workspace, j *judge) {
			j.history.unexplained = append(j.history.unexplained, operation{Start: at(30), End: at(31), Status: 500})
		}, map[verdict]int{unexpected: 1}},
		{"a failure during a fault", func(_ *workspace, j *judge) {
			j.history.unexplained = append(j.history.unexplained, operation{Start: at(39), End: at(41), Status: 500})
		}, nil},
		{"a failure during a fault of another platform", func(_ *workspace, j *judge) {
			j.history.unexplained = append(j.history.unexplained, operation{Start: at(39), End: at(41), Status: 500, Replica: 1})
		}, map[verdict]int{unexpected: 1}},
		{"a download ends early without a fault", func(_ *workspace, j *judge) {
			j.history.unexplained = append(j.history.unexplained, operation{Kind: kindFetch, About: "b", Start: at(30), End: at(31), Status: 200})
		}, map[verdict]int{unexpected: 1}},
		{"a download ends early after the ack", func(_ *workspace, j *judge) {
			j.history.unexplained = append(j.history.unexplained, operation{Kind: kindFetch, About: "a", Start: at(30), End: at(31), Status: 200})
		}, nil},
		{"a held poll that did not return a row", func(w *workspace, _ *judge) {
			w.held = append(w.held, heldPoll{replica: 1, start: at(0), end: at(25), after: 3})
		}, map[verdict]int{unexpected: 1}},
		{"a held poll that did not return a row during a fault", func(w *workspace, _ *judge) {
			w.held = append(w.held, heldPoll{start: at(36), end: at(45), after: 3})
		}, nil},
		{"a held poll that did not return a row after a fault", func(w *workspace, _ *judge) {
			w.held = append(w.held, heldPoll{start: at(39), end: at(55), after: 3})
		}, map[verdict]int{unexpected: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h, err := newHistory(filepath.Join(t.TempDir(), "history.jsonl"))
			if err != nil {
				t.Fatal(err)
			}
			parts := func(upload int) []part {
				return []part{{name: partName(0, upload, 0)}, {name: partName(0, upload, 1)}}
			}
			w := &workspace{files: map[string]*file{}, messages: []*message{{id: "m1", outcome: ok}}}
			w.uploads = []*upload{
				{parts: parts(0)[:1], outcome: ok, ids: []string{"a"}}, {number: 1, parts: parts(1), outcome: ok, ids: []string{"b", "c"}},
			}
			for i, about := range []string{"m1", partName(0, 0, 0), partName(0, 1, 0), partName(0, 1, 1)} {
				r := row{id: "r" + string(rune('1'+i)), seq: int64(i + 1), about: about, created: at(float64(i))}
				if i > 0 {
					r.file = []string{"a", "b", "c"}[i-1]
					u := w.uploads[min(i-1, 1)]
					w.files[r.file] = &file{id: r.file, upload: u, expires: at(60), expiresLatest: at(60)}
				}
				w.rows = append(w.rows, r)
			}
			add(w.files["a"], event{start: at(5), end: at(6), outcome: ok}, event{ack: true, start: at(6), end: at(7), outcome: ok},
				event{start: at(8), end: at(9), outcome: refused, status: http.StatusNotFound})
			j := &judge{history: h, all: []*workspace{w}, windows: []window{
				{kind: "fault", replicas: []int{0}, begin: at(40), end: at(41), recovered: at(42)},
			}}
			c.wrong(w, j)
			j.run()
			for _, v := range verdicts {
				if h.problems[v] != c.want[v] {
					t.Errorf("%d %s, want %d: %q", h.problems[v], v, c.want[v], h.first)
				}
			}
			if err := h.close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPart_IsDeterministicAndContainsItsName(t *testing.T) {
	t.Parallel()
	r := &run{options: options{seed: 1}}
	for i := range 50 {
		p := newPart(r.stream(1, i), partName(3, i, 2))
		if content := p.content(); !slices.Equal(content, p.content()) || int64(len(content)) != p.size {
			t.Errorf("%+v has %d bytes, or changes", p, len(content))
		}
		if w, u, f, good := parsePartName(p.name); !good || w != 3 || u != i || f != 2 {
			t.Errorf("%s is read as %d, %d, %d, %t", p.name, w, u, f, good)
		}
	}
	for _, name := range []string{"", "w1-u2-f3.bin.bin", "w01-u2-f3.bin", "x.bin", "w1-u2-f3.bin-key"} {
		if _, _, _, good := parsePartName(name); good {
			t.Errorf("%q is parsed as the name of a part", name)
		}
	}
}
