package pendinguploads_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

const (
	modelSequences = 20_000
	modelWorlds    = 4 // databases; the sequences of one run one after the other
	modelSteps     = 5 // per sequence, on average; more would take too long for CI
	modelRetention = time.Hour
	modelQuota     = 6 // files per workspace
)

// A Storage is compared with a model, which is a few maps, in 20,000 sequences of random steps: upload
// with and without a key, poll, fetch, acknowledge, expire, age and sweep, in two workspaces that know the
// ids of each other's files. Every result is compared, and everything that is left at the end of a
// sequence.
//
// Run with -rapid.checks N for N sequences a database, and with -rapid.seed to repeat one.
//
// Planted once each and caught here, in the first 200 sequences: the workspace taken out of the predicate
// of sqlOpen, of sqlAck and of the lists; expires_at taken out of sqlAck, of sqlSweepExpired and of the
// usage of the quota; the quota exceeded by one upload; the key not stored, or replayed without comparing
// its fingerprint; sqlSweepAcked without the retention; every fetch reported as the first; an upload
// announced in reverse order; the cursor's own row returned again.
func TestPostgres_BehavesLikeItsModel(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"rapid.checks": strconv.Itoa(modelSequences / modelWorlds), "rapid.steps": strconv.Itoa(modelSteps), "rapid.nofailfile": "true",
	} {
		if f := flag.Lookup(name); f.Value.String() == f.DefValue { // not set on the command line
			if err := flag.Set(name, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range modelWorlds {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			// The connections of the first world are configured like the platform's. In the others a query
			// is one round trip instead of two, and round trips are most of the time of this test.
			w := newWorld(t, i > 0)
			rapid.Check(t, w.sequence)
			t.Logf("steps: %v", w.steps)
		})
	}
}

// world is a database. Files that a sequence leaves behind are there in the next: a sweep is of all
// workspaces.
type world struct {
	ctx     context.Context // rapid's functions have no other way to get it
	db      *sql.DB
	inbox   *activity.Inbox
	storage *pendinguploads.Postgres
	over    map[uuid.UUID]bool // all files that a sweep would delete now; true: acknowledged
	steps   map[string]int
}

func newWorld(t *testing.T, quick bool) *world {
	dsn := pgtest.New(t)
	db := openPool(t, connector(t, dsn, quick))
	inbox := activity.New(db)
	storage := pendinguploads.NewPostgres(db, openPool(t, connector(t, dsn, true)), inbox, pendinguploads.Limits{
		MaxFileBytes: 2 << 20, MaxBatchBytes: 4 << 20, TTL: time.Hour, QuotaFiles: modelQuota,
	})
	return &world{ctx: t.Context(), db: db, inbox: inbox, storage: storage, over: map[uuid.UUID]bool{}, steps: map[string]int{}}
}

// modelFile is the model of a file.
type modelFile struct {
	pendinguploads.File
	data                          []byte
	fetched, acked, expired, gone bool
}

func (f *modelFile) readable() bool { return !f.gone && (f.acked || !f.expired) }
func (f *modelFile) counts() bool   { return !f.gone && !f.acked && !f.expired }

// modelWorkspace is the model of a workspace.
type modelWorkspace struct {
	id     uuid.UUID
	files  []*modelFile // in the order of their inbox rows
	read   int          // number of inbox rows that the poller has read
	cursor uuid.NullUUID
	keys   map[string]modelKey
}

type modelKey struct {
	variant string
	files   []*modelFile
}

// machine is one sequence.
type machine struct {
	*world
	workspaces [2]*modelWorkspace
}

func (w *world) sequence(t *rapid.T) {
	m := &machine{world: w}
	for i := range m.workspaces {
		m.workspaces[i] = &modelWorkspace{id: uuid.New(), keys: map[string]modelKey{}}
	}
	actions := map[string]func(*rapid.T){
		"upload": m.upload, "retry": m.retry, "poll": m.poll, "fetch": m.fetch, "ack": m.ack, "expire": m.expire, "age": m.age, "sweep": m.sweep,
	}
	for name, action := range actions {
		actions[name] = func(t *rapid.T) {
			action(t)
			w.steps[name]++
		}
	}
	t.Repeat(actions)
	m.compare(t)
}

func (m *machine) draw(t *rapid.T) *modelWorkspace {
	return m.workspaces[rapid.IntRange(0, 1).Draw(t, "workspace")]
}

// drawFile draws a file of any workspace, and one of the two workspaces to request it.
func (m *machine) drawFile(t *rapid.T) (*modelWorkspace, *modelFile) {
	all := slices.Concat(m.workspaces[0].files, m.workspaces[1].files)
	if len(all) == 0 {
		t.Skip("there is no file yet")
	}
	return m.draw(t), rapid.SampledFrom(all).Draw(t, "file")
}

// visible reports whether the workspace can read the file.
func visible(w *modelWorkspace, f *modelFile) bool { return f.Workspace == w.id && f.readable() }

// upload uploads something new.
func (m *machine) upload(t *rapid.T) { m.stage(t, m.draw(t), "") }

// retry uploads with one of two keys, so that it often sends the same upload again.
func (m *machine) retry(t *rapid.T) {
	m.stage(t, m.draw(t), rapid.SampledFrom([]string{"key", "other"}).Draw(t, "key"))
}

// modelUploads are the sizes of the files of an upload. The last has more than a chunk and is rare,
// because a MiB takes long.
var modelUploads = [][]int{{0}, {1}, {3, 20}, {20, 3}, {1, 0, 5}, {7}, {pendinguploads.ChunkBytes + 1}}

func (m *machine) stage(t *rapid.T, w *modelWorkspace, key string) {
	which := rapid.IntRange(0, 5).Draw(t, "files")
	if rapid.IntRange(0, 99).Draw(t, "long") == 99 {
		which = 6
	}
	variant, used := strconv.Itoa(which), 0
	var files []pendinguploads.NewFile
	var want []*modelFile
	for i, size := range modelUploads[which] {
		data := bytes.Repeat([]byte{byte('a' + i)}, size)
		f := pendinguploads.File{
			Workspace: w.id, Name: fmt.Sprintf("file%d.bin", i), MIMEType: "text/plain", Size: int64(size), SHA256: sha256.Sum256(data),
		}
		want = append(want, &modelFile{File: f, data: data})
		files = append(files, pendinguploads.NewFile{
			Name: f.Name, MIMEType: f.MIMEType, Size: f.Size, SHA256: f.SHA256, Content: bytes.NewReader(data),
		})
	}
	for _, f := range w.files {
		if f.counts() {
			used++
		}
	}
	staged, replayed, err := m.storage.StageOnce(m.ctx, w.id, key, files)
	first, known := w.keys[key]
	switch {
	case known && first.variant != variant:
		if !errors.Is(err, pendinguploads.ErrKeyReused) {
			t.Fatalf("a key used for %s comes with %s: %v", first.variant, variant, err)
		}
		return
	case known:
		want = first.files
	case used+len(files) > modelQuota:
		if !errors.Is(err, pendinguploads.ErrQuota) {
			t.Fatalf("%d files and %d more: %v", used, len(files), err)
		}
		return
	}
	if err != nil || replayed != known || len(staged) != len(want) {
		t.Fatalf("StageOnce(%q): %d files, replayed %t, %v; want %d, %t", key, len(staged), replayed, err, len(want), known)
	}
	for i, f := range staged {
		if known && f.ID != want[i].ID {
			t.Fatalf("the key replays file %s, was %s", f.ID, want[i].ID)
		}
		want[i].ID = f.ID
		same(t, f, want[i].File)
	}
	if known {
		return
	}
	w.files = append(w.files, want...)
	if key != "" {
		w.keys[key] = modelKey{variant, want}
	}
}

// same compares the fields that never change.
func same(t *rapid.T, got, want pendinguploads.File) {
	if got.ID != want.ID || got.Workspace != want.Workspace || got.Name != want.Name || got.MIMEType != want.MIMEType ||
		got.Size != want.Size || got.SHA256 != want.SHA256 {
		t.Fatalf("got %+v, want %+v", got, want)
	}
}

// poll reads some rows after the cursor.
func (m *machine) poll(t *rapid.T) {
	m.readInbox(t, m.draw(t), rapid.IntRange(1, 4).Draw(t, "limit"))
}

func (m *machine) readInbox(t *rapid.T, w *modelWorkspace, limit int) {
	rows, err := m.inbox.Read(m.ctx, w.id, activity.Query{After: w.cursor, Oldest: !w.cursor.Valid, Limit: limit})
	want := w.files[w.read:min(w.read+limit, len(w.files))]
	if err != nil || len(rows) != len(want) {
		t.Fatalf("%d rows after %d, %v; want %d", len(rows), w.read, err, len(want))
	}
	for i, r := range rows {
		if !bytes.Contains(r.RequestBody, []byte(`"`+want[i].ID.String()+`"`)) || r.Seq != int64(w.read+i+1) {
			t.Fatalf("row %d is %s, want file %s", r.Seq, r.RequestBody, want[i].ID)
		}
		w.cursor = uuid.NullUUID{UUID: r.ID, Valid: true}
	}
	w.read += len(rows)
}

// fetch reads a file and marks it fetched.
func (m *machine) fetch(t *rapid.T) {
	w, f := m.drawFile(t)
	opened, content, err := m.storage.Open(m.ctx, w.id, f.ID)
	if !visible(w, f) {
		if !errors.Is(err, pendinguploads.ErrNotFound) {
			t.Fatalf("Open of a missing file: %v", err)
		}
	} else {
		if err != nil {
			t.Fatalf("Open: %v", err)
		}
		defer content.Close()
		same(t, opened, f.File)
		if data, err := io.ReadAll(content); err != nil || !bytes.Equal(data, f.data) {
			t.Fatalf("read %d bytes of %d, %v", len(data), len(f.data), err)
		}
	}
	first, err := m.storage.MarkFetched(m.ctx, w.id, f.ID)
	if want := visible(w, f) && !f.fetched; err != nil || first != want {
		t.Fatalf("MarkFetched: %t, %v; want %t", first, err, want)
	}
	f.fetched = f.fetched || first
}

func (m *machine) ack(t *rapid.T) {
	w, f := m.drawFile(t)
	acked, first, err := m.storage.Ack(m.ctx, w.id, f.ID)
	if !visible(w, f) {
		if !errors.Is(err, pendinguploads.ErrNotFound) || first {
			t.Fatalf("Ack of a missing file: %t, %v", first, err)
		}
		return
	}
	if err != nil || first == f.acked {
		t.Fatalf("Ack: %t, %v; acknowledged before: %t", first, err, f.acked)
	}
	same(t, acked, f.File)
	f.acked = true
}

// expire makes a file expire.
func (m *machine) expire(t *rapid.T) {
	_, f := m.drawFile(t)
	m.change(t, sqlExpire, f.ID)
	f.expired = true
	if !f.gone && !f.acked {
		m.over[f.ID] = false
	}
}

const sqlLongAcked = `UPDATE pending_uploads SET acked_at = acked_at - interval '2 hours' WHERE file_id = $1`

// age makes an acknowledgement older than the retention.
func (m *machine) age(t *rapid.T) {
	_, f := m.drawFile(t)
	m.change(t, sqlLongAcked, f.ID)
	if f.acked && !f.gone {
		m.over[f.ID] = true
	}
}

func (m *machine) change(t *rapid.T, statement string, args ...any) {
	if _, err := m.db.ExecContext(m.ctx, statement, args...); err != nil {
		t.Fatal(err)
	}
}

// sweep sweeps, and checks that it deletes what is due in all workspaces of the database and nothing else.
func (m *machine) sweep(t *rapid.T) {
	var acked, expired int
	for more := true; more; {
		swept, err := m.storage.Sweep(m.ctx, modelRetention)
		if err != nil {
			t.Fatal(err)
		}
		acked, expired, more = acked+swept.Acked, expired+swept.Expired, swept.More
	}
	for _, isAcked := range m.over {
		if isAcked {
			acked--
		} else {
			expired--
		}
	}
	if acked != 0 || expired != 0 {
		t.Fatalf("the sweep deleted %+d acknowledged and %+d expired files more than were over", acked, expired)
	}
	for _, w := range m.workspaces {
		for _, f := range w.files {
			if _, over := m.over[f.ID]; over {
				f.gone = true
			}
		}
	}
	clear(m.over)
}

// compare compares everything that is left.
func (m *machine) compare(t *rapid.T) {
	for _, w := range m.workspaces {
		if len(w.files) == 0 {
			continue
		}
		m.readInbox(t, w, activity.MaxLimit)
		files, err := m.storage.List(m.ctx, w.id, pendinguploads.ListQuery{Filter: pendinguploads.All, Limit: pendinguploads.MaxListLimit})
		if err != nil {
			t.Fatal(err)
		}
		want := slices.DeleteFunc(slices.Clone(w.files), func(f *modelFile) bool { return !f.readable() })
		if len(files) != len(want) {
			t.Fatalf("%d files are listed, want %d", len(files), len(want))
		}
		for i, f := range files {
			same(t, f, want[i].File)
			if state := f.State(); state != want[i].state() {
				t.Fatalf("file %s is %s, want %s", f.ID, state, want[i].state())
			}
		}
	}
}

func (f *modelFile) state() pendinguploads.State {
	switch {
	case f.acked:
		return pendinguploads.Acked
	case f.fetched:
		return pendinguploads.Fetched
	default:
		return pendinguploads.Staged
	}
}
