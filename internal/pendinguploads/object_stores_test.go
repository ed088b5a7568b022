package pendinguploads_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// A store that hangs while it is opened, such as an old one that is only read, delays only the files in
// it. Planted: a store opened while the lock of all is held; the opening waited for after the context has
// ended.
func TestObjectStorage_AStoreThatHangsWhileItIsOpenedDelaysNoOther(t *testing.T) {
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
	b := newObjectStorage(t, r.postgres, func(ctx context.Context, of string, namespace uuid.UUID) (pendinguploads.ObjectStore, error) {
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

// A folder that is not mounted looks empty. Planted: no probe; a probe of one object only; a probe for
// garbage.
func TestObjectStorage_AStoreThatIsNotMountedIsNotWrittenTo(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	again := func() error {
		b, err := pendinguploads.NewObjectStorage(t.Context(), r.postgres, r.open, pendinguploads.ObjectStorageOptions{URL: "file://" + r.dir})
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
	if err := again(); !errors.Is(err, pendinguploads.ErrWrongStore) {
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
		t.Errorf("no object is expected in the store: %v", err)
	}
}

// Files that were staged before can be read whatever store is configured now. Planted: every object read
// from the configured store.
func TestObjectStorage_FilesStayReadableWhenTheStoreIsSwitched(t *testing.T) {
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
		mustRead(t, r, staged[0]) // a replica that was not restarted yet
	}
	r.wantObjects(t, 2, 2, 1)
}

// Planted: uploads with a key that wait for a store counted among those that write to the database.
func TestObjectStorage_AStoreThatHangsDelaysNoUploadToTheDatabase(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	var ended sync.WaitGroup
	writing, release := make(chan struct{}, 4), make(chan struct{})
	r.faults.write = func(context.Context, uuid.UUID) error {
		writing <- struct{}{}
		<-release
		return nil
	}
	for i := range 3 {
		ended.Go(func() {
			if _, err := r.stageSizes(t.Context(), fmt.Sprint("key ", i), mib); err != nil {
				t.Error(err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for range 3 {
		select {
		case <-writing:
		case <-ctx.Done():
			t.Error("fewer than three write")
		}
	}
	if _, err := r.postgres.Stage(ctx, uuid.New(), []pendinguploads.NewFile{newFile("a.bin", content(2*mib))}); err != nil {
		t.Errorf("large, to the database: %v", err)
	}
	waits, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	if _, err := r.stageSizes(waits, "one more", mib); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a fourth upload with a key of one workspace: %v", err)
	}
	close(release)
	ended.Wait()
}
