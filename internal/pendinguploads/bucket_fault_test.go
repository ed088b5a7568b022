package pendinguploads_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

const mib = 1 << 20 // longer than what stays in the row

func TestBucket_SmallFilesStayInTheRow(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	staged, err := r.stageSizes(t.Context(), "", 0, inlineBytes, inlineBytes+1, mib)
	if err != nil {
		t.Fatal(err)
	}
	r.wantObjects(t, 2, 2, 2)
	for _, f := range staged {
		mustRead(t, r, f)
	}
}

// What fails at each step leaves no file, no announcement and no room taken, and the sweep finds
// what is left. Planted: the objects before the intents (an object is left that no row knows of);
// nothing deleted; the room not given back; the claim without its margin; the intents deleted at once (an
// object that arrives late stays for ever).
func TestBucket_AFailureAtAnyStepLeavesNoTrace(t *testing.T) {
	t.Parallel()
	for name, plant := range map[string]func(t *testing.T, r *rig){
		"the store": func(_ *testing.T, r *rig) {
			r.faults.write = func(context.Context, uuid.UUID) error { return errStore }
		},
		"the row of the file": func(t *testing.T, r *rig) {
			mustExec(t, r.db, `ALTER TABLE pending_uploads ADD CHECK (filename = 'b')`)
		},
		"the announcement": func(t *testing.T, r *rig) { mustExec(t, r.db, `ALTER TABLE activity_logs ADD CHECK (seq < 0)`) },
		"the claim, too late": func(_ *testing.T, r *rig) {
			r.faults.write = func(ctx context.Context, _ uuid.UUID) error {
				_, err := r.db.ExecContext(ctx, `UPDATE upload_objects SET garbage_at = now() + interval '4 minutes'`)
				return err
			}
		},
		"the key": func(t *testing.T, r *rig) { mustExec(t, r.db, `ALTER TABLE upload_keys ADD CHECK (key = 'b')`) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, key := range []string{"", "key"} {
				if name == "the key" && key == "" {
					continue
				}
				r := newRig(t, "")
				plant(t, r)
				if staged, err := r.stageSizes(t.Context(), key, 10, mib, mib+1); err == nil || staged != nil {
					t.Fatalf("staged %d files", len(staged))
				}
				r.mustBeTraceless(t)
				r.wantObjects(t, 2, 0, 0)
				if err := r.sweepGarbage(t); err != nil {
					t.Error(err)
				}
				r.wantObjects(t, 0, 0, 0)
			}
		})
	}
}

// An object that can neither be kept nor deleted is garbage that is known, until it can be.
// Planted: the row deleted though the object was not; the row due again at once, so that a sweep never
// ends.
func TestBucket_AnObjectThatCannotBeDeletedIsTriedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	r.faults.write = func(context.Context, uuid.UUID) error { return errStore }
	r.faults.del = func() error { return errStore }
	if _, err := r.stageSizes(t.Context(), "", mib); !errors.Is(err, errStore) {
		t.Fatal(err)
	}
	r.wantObjects(t, 1, 0, 1)
	if err := r.sweepGarbage(t); !errors.Is(err, errStore) {
		t.Errorf("the sweep returns %v", err)
	}
	r.wantObjects(t, 1, 0, 1)
	if _, err := r.Sweep(t.Context(), time.Hour); err != nil {
		t.Errorf("it is tried again at once: %v", err)
	}
	r.faults.del = nil
	if err := r.sweepGarbage(t); err != nil {
		t.Error(err)
	}
	r.wantObjects(t, 0, 0, 0)
}

// Planted: what was deleted not forgotten because something else was not; an error that ends the
// round, though there is more to delete.
func TestBucket_OneObjectThatCannotBeDeletedKeepsNoOthers(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	staged, err := r.stageSizes(t.Context(), "", mib, mib, mib)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range staged {
		if err := execute(r.db, sqlExpire)(t.Context(), f.ID); err != nil {
			t.Fatal(err)
		}
	}
	var asked atomic.Int32
	r.faults.del = func() error {
		if asked.Add(1) == 1 {
			return errStore
		}
		return nil
	}
	if _, err := r.Sweep(t.Context(), time.Hour); err != nil {
		t.Error(err)
	}
	r.wantObjects(t, 1, 0, 1)
	r.faults.del = nil
	if err := r.sweepGarbage(t); err != nil {
		t.Error(err)
	}
	r.wantObjects(t, 0, 0, 0)
}

// A sweep that dies after it has deleted the object does the same again. Planted: a missing object
// is an error.
func TestBucket_ASweepThatWasCutShortIsRepeated(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	staged, err := r.stageSizes(t.Context(), "", mib)
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, r.db, `CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''cut''; END'`)
	mustExec(t, r.db, `CREATE TRIGGER cut BEFORE DELETE ON upload_objects FOR EACH ROW EXECUTE FUNCTION fail()`)
	if err := execute(r.db, sqlExpire)(t.Context(), staged[0].ID); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Sweep(t.Context(), time.Hour); err == nil {
		t.Error("the sweep succeeded")
	}
	r.wantObjects(t, 1, 0, 0)
	mustExec(t, r.db, `DROP TRIGGER cut ON upload_objects`)
	if err := r.sweepGarbage(t); err != nil {
		t.Error(err)
	}
	r.wantObjects(t, 0, 0, 0)
}

// Whoever deletes a row leaves its object to the sweep. Planted: a trigger that changes nothing.
func TestBucket_AnOldPlatformsSweepLeavesKnownGarbage(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	staged, err := r.stageSizes(t.Context(), "", mib, mib)
	if err != nil {
		t.Fatal(err)
	}
	if err := execute(r.db, sqlExpire)(t.Context(), staged[0].ID); err != nil {
		t.Fatal(err)
	}
	// It cannot read the file, and says so, rather than that it is empty.
	_, c, err := r.postgres.Open(t.Context(), workspaceID, staged[1].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, err := c.Read(make([]byte, 10)); n != 0 || !errors.Is(err, pendinguploads.ErrTruncated) {
		t.Errorf("the old platform reads %d bytes, %v", n, err)
	}
	if s, err := r.postgres.Sweep(t.Context(), time.Hour); err != nil || s.Expired != 1 {
		t.Fatal(s, err)
	}
	if n, err := pendinguploads.ReadGarbage(t.Context(), r.db); n != 1 || err != nil {
		t.Errorf("garbage %d, %v", n, err)
	}
	r.wantObjects(t, 2, 1, 2)
	if _, err := r.Sweep(t.Context(), time.Hour); err != nil {
		t.Error(err)
	}
	r.wantObjects(t, 1, 1, 1)
	mustRead(t, r, staged[1])
}

// Uploads wait for a store that does not answer without anything of the database, but for those with
// a key, whose transaction is kept from being ended for idling. Planted: the transaction begun first;
// nothing sent on it meanwhile.
func TestBucket_ASlowStoreHoldsNoConnection(t *testing.T) {
	t.Parallel()
	for key, held := range map[string]int{"": 0, "key": 1} {
		t.Run("key "+key, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, "")
			r.KeepAlive(20 * time.Millisecond)
			mustExec(t, r.db, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET idle_in_transaction_session_timeout = 400', current_database()); END $$`)
			r.faults.write = func(ctx context.Context, _ uuid.UUID) error {
				if n := r.staging.Stats().InUse + r.db.Stats().InUse; n != held {
					t.Errorf("%d connections are in use, want %d", n, held)
				}
				timer := time.NewTimer(time.Second)
				defer timer.Stop()
				select {
				case <-timer.C:
				case <-ctx.Done():
				}
				return nil
			}
			staged, err := r.stageSizes(t.Context(), key, mib)
			if err != nil {
				t.Fatal(err)
			}
			mustRead(t, r, staged[0])
		})
	}
}

// Planted: the ping's error ignored (the upload goes on until its commit fails, a quarter of an hour later).
func TestBucket_AnUploadWhoseTransactionIsLostEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	r.KeepAlive(20 * time.Millisecond)
	r.faults.write = func(ctx context.Context, _ uuid.UUID) error {
		if _, err := r.db.ExecContext(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity `+
			`WHERE datname = current_database() AND state = 'idle in transaction'`); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
	if staged, err := r.stageSizes(t.Context(), "key", mib); err == nil {
		t.Errorf("staged %d files", len(staged))
	}
	r.mustBeTraceless(t)
}

// Planted: the context not passed on to the store.
func TestBucket_AnUploadEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"", "key"} {
		r := newRig(t, "")
		ctx, cancel := context.WithCancel(t.Context())
		r.faults.write = func(ctx context.Context, _ uuid.UUID) error {
			cancel()
			<-ctx.Done()
			return ctx.Err()
		}
		if _, err := r.stageSizes(ctx, key, mib, mib, mib); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want the context's error", err)
		}
		r.mustBeTraceless(t)
		r.wantObjects(t, 3, 0, 0)
		if _, err := r.stageSizes(ctx, key, mib); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want the context's error", err)
		}
	}
}

// Planted: what is longer than it says taken.
func TestBucket_ContentThatIsNotAsItSaysIsRefused(t *testing.T) {
	t.Parallel()
	errReader := errors.New("the reader fails")
	data := content(mib)
	for _, c := range []struct {
		why     string
		content io.Reader
		want    error
	}{
		{"short, in place", bytes.NewReader(data[1:]), pendinguploads.ErrInvalidFile},
		{"long, in place", io.NewSectionReader(bytes.NewReader(append(data, 'x')), 0, mib+1), pendinguploads.ErrInvalidFile},
		{"short", io.MultiReader(bytes.NewReader(data[1:])), pendinguploads.ErrInvalidFile},
		{"long", io.MultiReader(bytes.NewReader(data), bytes.NewReader([]byte("x"))), pendinguploads.ErrInvalidFile},
		{"fails", io.MultiReader(bytes.NewReader(data[:10]), iotest.ErrReader(errReader)), errReader},
		{"fails instead of ending", io.MultiReader(bytes.NewReader(data), iotest.ErrReader(errReader)), errReader},
		{"cannot be sought", unseekable{bytes.NewReader(data)}, errReader},
	} {
		r := newRig(t, "")
		unseekableError = errReader
		file := newFile("a.bin", data)
		file.Content = c.content
		if staged, err := r.Stage(t.Context(), workspaceID, []pendinguploads.NewFile{file}); staged != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: %d files, %v; want %v", c.why, len(staged), err, c.want)
		}
		r.mustBeTraceless(t)
	}
}

var unseekableError error

type unseekable struct{ *bytes.Reader }

func (unseekable) Seek(int64, int) (int64, error) { return 0, unseekableError }

// Planted: the store's word taken for it.
func TestBucket_AStoreThatDoesNotReadAllIsNotBelieved(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	lazy := newBucket(t, r.postgres, func(context.Context, string, uuid.UUID) (pendinguploads.Objects, error) { return lazyStore{}, nil }, "file:///lazy")
	file := newFile("a.bin", content(mib))
	file.Content = io.MultiReader(file.Content)
	if staged, err := lazy.Stage(t.Context(), workspaceID, []pendinguploads.NewFile{file}); err == nil {
		t.Errorf("staged %d files", len(staged))
	}
	r.mustBeTraceless(t)
}

// lazyStore says that it has done what it has not.
type lazyStore struct{ pendinguploads.Objects }

func (lazyStore) Write(context.Context, uuid.UUID, int64, io.Reader) error { return nil }
func (lazyStore) Delete(context.Context, uuid.UUID) error                  { return nil }
func (lazyStore) Close() error                                             { return errStore }

func TestBucket_CloseTellsWhatFailed(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	lazy := newBucket(t, r.postgres, func(context.Context, string, uuid.UUID) (pendinguploads.Objects, error) { return lazyStore{}, nil }, "file:///lazy")
	if err := lazy.Close(); !errors.Is(err, errStore) {
		t.Error(err)
	}
	if err := lazy.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

// A read that breaks goes on where it was, a few times; what has lost bytes never ends cleanly.
// Planted: a broken body for the end; resumed from the start; the object's length not looked at.
func TestBucket_ABrokenReadIsResumed(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	staged, err := r.stageSizes(t.Context(), "", mib)
	if err != nil {
		t.Fatal(err)
	}
	data := content(mib)
	asked := 0
	cut := func(err error, n int64) func(int64) (io.ReadCloser, int64, error) {
		return func(offset int64) (io.ReadCloser, int64, error) {
			asked++
			rest := data[offset:]
			return io.NopCloser(io.MultiReader(bytes.NewReader(rest[:min(n, int64(len(rest)))]), iotest.ErrReader(err))), mib, nil
		}
	}
	for _, broken := range []error{io.EOF, io.ErrUnexpectedEOF, errStore} {
		asked = 0
		r.faults.read = cut(broken, mib/8)
		mustRead(t, r, staged[0])
		if asked != 8 {
			t.Errorf("cut eight times with %v: asked %d times", broken, asked)
		}
	}
	open := func(ctx context.Context) io.ReadSeekCloser {
		_, c, err := r.Open(ctx, workspaceID, staged[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	for want, read := range map[error]func(int64) (io.ReadCloser, int64, error){
		errStore:            func(int64) (io.ReadCloser, int64, error) { asked++; return nil, 0, errStore },
		io.ErrUnexpectedEOF: cut(io.EOF, 0),
		// The file is there: whoever asks for it is to come back, not to give it up.
		pendinguploads.ErrNoBytes: func(int64) (io.ReadCloser, int64, error) { asked++; return nil, 0, fs.ErrNotExist },
	} {
		asked, r.faults.read = 0, read
		n, err := open(t.Context()).Read(make([]byte, 10))
		if n != 0 || !errors.Is(err, want) || errors.Is(err, pendinguploads.ErrTruncated) || asked > 4 {
			t.Errorf("%d bytes, %v after asking %d times; want %v", n, err, asked, want)
		}
	}
	r.faults.read = func(int64) (io.ReadCloser, int64, error) { return io.NopCloser(bytes.NewReader(data)), mib - 1, nil }
	if n, err := open(t.Context()).Read(make([]byte, 10)); n != 0 || !errors.Is(err, pendinguploads.ErrNoBytes) {
		t.Errorf("an object of another length: %d bytes, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	gone := open(ctx)
	r.faults.read = func(int64) (io.ReadCloser, int64, error) { cancel(); return nil, 0, fs.ErrNotExist }
	if n, err := gone.Read(make([]byte, 10)); n != 0 || !errors.Is(err, context.Canceled) || errors.Is(err, pendinguploads.ErrTruncated) {
		t.Errorf("nobody can say whether the file is there: %d bytes, %v", n, err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	r.faults.read = func(int64) (io.ReadCloser, int64, error) {
		if asked++; asked == 2 {
			cancel()
		}
		return nil, 0, errStore
	}
	asked = 0
	if n, err := open(ctx).Read(make([]byte, 10)); n != 0 || !errors.Is(err, errStore) || asked > 3 {
		t.Errorf("the context ends: %d bytes, %v, asked %d times", n, err, asked)
	}
}

// A reader in the middle of a file goes on when its bytes are moved. Planted: the place not looked up
// again.
func TestBucket_AReaderFollowsAFileThatIsMoved(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	other := r.on(t, "file://"+t.TempDir())
	first, err := r.stageSizes(t.Context(), "", mib)
	if err != nil {
		t.Fatal(err)
	}
	_, c, err := r.Open(t.Context(), workspaceID, first[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	head := make([]byte, 1000)
	if _, err := io.ReadFull(c, head); err != nil {
		t.Fatal(err)
	}
	second, err := other.Stage(t.Context(), uuid.New(), []pendinguploads.NewFile{newFile("b.bin", content(mib))})
	if err != nil {
		t.Fatal(err)
	}
	// The object of one becomes that of the other, and the reader's own is gone.
	mustExec(t, r.db, `DELETE FROM pending_uploads WHERE file_id = '`+second[0].ID.String()+`'`)
	mustExec(t, r.db, `UPDATE pending_uploads SET object_key = (SELECT object_key FROM upload_objects WHERE file_id = '`+second[0].ID.String()+`')`)
	broke := false
	r.faults.read = func(int64) (io.ReadCloser, int64, error) {
		if !broke {
			broke = true
			return nil, 0, fs.ErrNotExist
		}
		return nil, 0, nil
	}
	if _, err := c.Seek(1000, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Seek(-1, io.SeekStart); err == nil {
		t.Error("a negative position")
	}
	// What is being read at this moment is the old object; ask for it anew.
	if _, err := c.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, content(mib)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if !broke {
		t.Error("it never missed its object")
	}
}

// Bytes that are not where they were: of a file that is gone, that is the end of it; of one that is
// there, an error that a reader may ask again after. Planted: each of the three for another.
func TestBucket_AReaderThatMissesItsBytesTellsWhy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		meanwhile func(*rig)
		truncated bool
	}{
		"the file is gone":   {func(r *rig) { mustExec(t, r.db, `DELETE FROM pending_uploads`) }, true},
		"the bytes are gone": {func(*rig) {}, false},
		"no database":        {func(r *rig) { r.db.Close() }, false},
	} {
		r := newRig(t, "")
		staged, err := r.stageSizes(t.Context(), "", mib)
		if err != nil {
			t.Fatal(err)
		}
		_, content, err := r.Open(t.Context(), workspaceID, staged[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		c.meanwhile(r)
		r.faults.read = func(int64) (io.ReadCloser, int64, error) { return nil, 0, fs.ErrNotExist }
		n, err := io.Copy(io.Discard, content)
		if n != 0 || err == nil || errors.Is(err, pendinguploads.ErrTruncated) != c.truncated {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
		content.Close()
	}
}

func TestBucket_LinksAreForObjectsOfTheWorkspace(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	staged, err := r.stageSizes(t.Context(), "", 10, mib)
	if err != nil {
		t.Fatal(err)
	}
	r.faults.sign = func() (string, error) { return "https://store.example/signed", nil }
	for i, want := range []string{"", "https://store.example/signed"} {
		if f, link, err := r.Link(t.Context(), workspaceID, staged[i].ID); err != nil || link != want || f.ID != staged[i].ID {
			t.Errorf("file %d: %q, %v", i, link, err)
		}
	}
	if _, link, err := r.Link(t.Context(), uuid.New(), staged[1].ID); link != "" || !errors.Is(err, pendinguploads.ErrNotFound) {
		t.Errorf("another workspace: %q, %v", link, err)
	}
	r.faults.sign = func() (string, error) { return "", errStore }
	if _, link, err := r.Link(t.Context(), workspaceID, staged[1].ID); link != "" || !errors.Is(err, errStore) {
		t.Errorf("a store that fails: %q, %v", link, err)
	}
}

// Whatever is configured now, what was staged before is there. Planted: the configured store asked
// for every object.
func TestBucket_SwitchingTheStoreStrandsNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	first, err := r.stageSizes(t.Context(), "", mib)
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"file://" + t.TempDir(), ""} {
		other := r.on(t, url)
		mustRead(t, other, first[0])
		staged, err := other.Stage(t.Context(), workspaceID, []pendinguploads.NewFile{newFile("b.bin", content(mib))})
		if err != nil {
			t.Fatal(err)
		}
		mustRead(t, other, staged[0])
		mustRead(t, r, staged[0]) // a replica that is not restarted yet
	}
	r.wantObjects(t, 2, 2, 1)
}

// Another store that hangs, an old one say that is only read, is nobody's matter who does not need it. Planted: a
// store opened while all are locked; its opening waited for without a look at the context.
func TestBucket_AStoreThatHangsWhenItIsOpenedHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	old := r.on(t, "file://"+t.TempDir())
	inOld, err := old.Stage(t.Context(), workspaceID, []pendinguploads.NewFile{newFile("a.bin", content(mib))})
	if err != nil {
		t.Fatal(err)
	}
	here, err := r.stageSizes(t.Context(), "", mib)
	if err != nil {
		t.Fatal(err)
	}
	url := "file://" + r.dir
	hangs, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b := newBucket(t, r.postgres, func(ctx context.Context, of string, namespace uuid.UUID) (pendinguploads.Objects, error) {
		if of != url {
			once.Do(func() { close(hangs) })
			<-release
		}
		return r.open(ctx, of, namespace)
	}, url)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	_, reader, err := b.Open(ctx, workspaceID, inOld[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := io.ReadAll(reader)
		ended <- err
	}()
	<-hangs
	mustRead(t, b, here[0])
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the reader waits for the store, though its client is gone")
	}
	close(release)
	mustRead(t, b, inOld[0])
}

// Planted: uploads with a key that wait for a store, counted among those that write to the database.
func TestBucket_AStoreThatHangsHoldsUpNoUploadToTheDatabase(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	var ended sync.WaitGroup
	writing, release := make(chan struct{}, 4), make(chan struct{})
	r.faults.write = func(context.Context, uuid.UUID) error {
		writing <- struct{}{}
		<-release
		return nil
	}
	for i := range 4 {
		ended.Go(func() {
			if _, err := r.stageSizes(t.Context(), fmt.Sprint("key ", i), mib); err != nil {
				t.Error(err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for range 4 {
		select {
		case <-writing:
		case <-ctx.Done():
			t.Error("fewer than four write")
		}
	}
	if _, err := r.postgres.Stage(ctx, uuid.New(), []pendinguploads.NewFile{newFile("a.bin", content(2*mib))}); err != nil {
		t.Errorf("large, to the database: %v", err)
	}
	waits, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	if _, err := r.stageSizes(waits, "one more", mib); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a fifth upload with a key: %v", err)
	}
	close(release)
	ended.Wait()
}

// A folder that is not mounted looks like an empty one. Planted: no look; a look at one object only;
// garbage taken for a witness.
func TestBucket_AStoreThatHasLostAllIsNotWrittenTo(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	again := func() error {
		b, err := pendinguploads.NewBucket(t.Context(), r.postgres, r.open, pendinguploads.BucketOptions{URL: "file://" + r.dir})
		if err == nil {
			b.Close()
		}
		return err
	}
	if _, err := r.stageSizes(t.Context(), "", mib, mib, mib); err != nil {
		t.Fatal(err)
	}
	aside := r.dir + "-aside"
	if err := os.Rename(r.dir, aside); err != nil {
		t.Fatal(err)
	}
	if err := again(); !errors.Is(err, pendinguploads.ErrEmptied) {
		t.Errorf("not mounted: %v", err)
	}
	mustExec(t, r.db, `INSERT INTO upload_objects (object_key, store_id, size_bytes, file_id) SELECT '00000000-0000-0000-0000-000000000000', store_id, 1, file_id FROM upload_objects LIMIT 1`)
	if err := os.RemoveAll(r.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, r.dir); err != nil {
		t.Fatal(err)
	}
	if err := again(); err != nil {
		t.Errorf("one object is lost: %v", err)
	}
	mustExec(t, r.db, `DELETE FROM pending_uploads`)
	mustExec(t, r.db, `DELETE FROM upload_objects WHERE garbage_at IS NULL`)
	if err := os.RemoveAll(r.dir); err != nil {
		t.Fatal(err)
	}
	if err := again(); err != nil {
		t.Errorf("there is nothing that should be there: %v", err)
	}
}

// A store that reads on after an error, and takes the end that follows for the right one, is not
// believed either: the byte too many is not forgotten.
func TestBucket_AStoreThatReadsOnAfterAnErrorIsNotBelieved(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	stubborn := newBucket(t, r.postgres, func(context.Context, string, uuid.UUID) (pendinguploads.Objects, error) { return stubbornStore{}, nil }, "file:///stubborn")
	file := newFile("a.bin", content(mib))
	file.Content = io.MultiReader(file.Content, bytes.NewReader([]byte("x")))
	if staged, err := stubborn.Stage(t.Context(), workspaceID, []pendinguploads.NewFile{file}); !errors.Is(err, pendinguploads.ErrInvalidFile) {
		t.Errorf("staged %d files, %v", len(staged), err)
	}
	r.mustBeTraceless(t)
}

// stubbornStore reads once more than it should, and says that all is well.
type stubbornStore struct{ lazyStore }

func (stubbornStore) Write(_ context.Context, _ uuid.UUID, _ int64, content io.Reader) error {
	_, _ = io.Copy(io.Discard, content)
	_, _ = content.Read(make([]byte, 1))
	return nil
}
