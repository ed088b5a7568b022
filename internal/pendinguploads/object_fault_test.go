package pendinguploads_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

const mib = 1 << 20 // larger than what stays in the row

func TestObjectStorage_SmallFilesStayInTheRow(t *testing.T) {
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

// A failure at any step leaves no file, no inbox row and no reservation, and the sweep deletes the objects
// that are left. Planted: the objects written before their rows (an object stays that no row knows of);
// nothing deleted; the reservation not released; the claim without its margin; the rows deleted at once
// (an object that a late write creates stays forever).
func TestObjectStorage_AFailureAtAnyStepLeavesNoTrace(t *testing.T) {
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

// While a store does not answer, uploads hold no connection, except those with a key, whose transaction
// must not be ended for idling. Planted: the transaction begun first; no keepalive.
func TestObjectStorage_ASlowStoreHoldsNoConnection(t *testing.T) {
	t.Parallel()
	for key, held := range map[string]int{"": 0, "key": 1} {
		t.Run("key "+key, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, "")
			r.SetKeepaliveInterval(20 * time.Millisecond)
			mustExec(t, r.db, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET idle_in_transaction_session_timeout = 2500', current_database()); END $$`)
			r.faults.write = func(ctx context.Context, _ uuid.UUID) error {
				if n := r.staging.Stats().InUse + r.db.Stats().InUse; n != held {
					t.Errorf("%d connections are in use, want %d", n, held)
				}
				timer := time.NewTimer(3 * time.Second)
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

// Planted: the error of the keepalive ignored (the upload goes on until its commit fails, a quarter of an
// hour later).
func TestObjectStorage_AnUploadWhoseTransactionIsLostEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	r.SetKeepaliveInterval(20 * time.Millisecond)
	r.faults.write = func(ctx context.Context, _ uuid.UUID) error {
		if _, err := r.db.ExecContext(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity `+
			`WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()`); err != nil {
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
func TestObjectStorage_AnUploadEndsWithItsContext(t *testing.T) {
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

// Planted: content accepted that is longer than its size.
func TestObjectStorage_ContentOfAnotherSizeIsRefused(t *testing.T) {
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

// Planted: the store's success accepted without a check.
func TestObjectStorage_AStoreThatDoesNotReadAllIsAnError(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	lazy := newObjectStorage(t, r.postgres, func(context.Context, string, uuid.UUID) (pendinguploads.ObjectStore, error) { return lazyStore{}, nil }, "file:///lazy")
	file := newFile("a.bin", content(mib))
	file.Content = io.MultiReader(file.Content)
	if staged, err := lazy.Stage(t.Context(), workspaceID, []pendinguploads.NewFile{file}); err == nil {
		t.Errorf("staged %d files", len(staged))
	}
	r.mustBeTraceless(t)
}

// lazyStore reports success and does nothing.
type lazyStore struct{ pendinguploads.ObjectStore }

func (lazyStore) Write(context.Context, uuid.UUID, int64, io.Reader) error { return nil }
func (lazyStore) Delete(context.Context, uuid.UUID) error                  { return nil }
func (lazyStore) Close() error                                             { return errStore }

func TestObjectStorage_CloseReportsWhatFailed(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	lazy := newObjectStorage(t, r.postgres, func(context.Context, string, uuid.UUID) (pendinguploads.ObjectStore, error) { return lazyStore{}, nil }, "file:///lazy")
	if err := lazy.Close(); !errors.Is(err, errStore) {
		t.Error(err)
	}
	if err := lazy.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

func TestObjectStorage_SignedURLsAreForObjectsOfTheWorkspace(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	staged, err := r.stageSizes(t.Context(), "", 10, mib)
	if err != nil {
		t.Fatal(err)
	}
	r.faults.sign = func() (string, error) { return "https://store.example/signed", nil }
	for i, want := range []string{"", "https://store.example/signed"} {
		if f, link, err := r.SignedURL(t.Context(), workspaceID, staged[i].ID); err != nil || link != want || f.ID != staged[i].ID {
			t.Errorf("file %d: %q, %v", i, link, err)
		}
	}
	if _, link, err := r.SignedURL(t.Context(), uuid.New(), staged[1].ID); link != "" || !errors.Is(err, pendinguploads.ErrNotFound) {
		t.Errorf("another workspace: %q, %v", link, err)
	}
	r.faults.sign = func() (string, error) { return "", errStore }
	if _, link, err := r.SignedURL(t.Context(), workspaceID, staged[1].ID); link != "" || !errors.Is(err, errStore) {
		t.Errorf("a store that fails: %q, %v", link, err)
	}
}

// A store that reads on after an error, and takes the io.EOF that follows for the end, does not hide that
// there was one byte too many.
func TestObjectStorage_AStoreThatReadsOnAfterAnErrorIsAnError(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	stubborn := newObjectStorage(t, r.postgres, func(context.Context, string, uuid.UUID) (pendinguploads.ObjectStore, error) {
		return stubbornStore{}, nil
	}, "file:///stubborn")
	file := newFile("a.bin", content(mib))
	file.Content = io.MultiReader(file.Content, bytes.NewReader([]byte("x")))
	if staged, err := stubborn.Stage(t.Context(), workspaceID, []pendinguploads.NewFile{file}); !errors.Is(err, pendinguploads.ErrInvalidFile) {
		t.Errorf("staged %d files, %v", len(staged), err)
	}
	r.mustBeTraceless(t)
}

// stubbornStore reads once more than it should and reports success.
type stubbornStore struct{ lazyStore }

func (stubbornStore) Write(_ context.Context, _ uuid.UUID, _ int64, content io.Reader) error {
	_, _ = io.Copy(io.Discard, content)
	_, _ = content.Read(make([]byte, 1))
	return nil
}
