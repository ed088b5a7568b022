package pendinguploads_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// An object that could not be deleted keeps its row until it is deleted. Planted: the row deleted though
// the object was not; the row due again at once, so that a sweep never ends.
func TestObjectStorage_AnObjectThatCannotBeDeletedIsTriedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	r.faults.write = func(context.Context, uuid.UUID) error { return errStore }
	r.faults.del = func(context.Context) error { return errStore }
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

// Planted: the rows of deleted objects kept because another object failed; an error that ends the sweep
// though there is more to delete.
func TestObjectStorage_OneObjectThatCannotBeDeletedDelaysNoOther(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	r.stageExpired(t, mib, mib, mib)
	var asked atomic.Int32
	r.faults.del = func(context.Context) error {
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

// The rows of deleted objects are deleted even if another delete hangs, which ends by its own timeout or
// by that of the sweep. Planted: a delete without a timeout of its own; the rows deleted with a context
// that has ended.
func TestObjectStorage_ADeleteThatHangsDelaysNoOther(t *testing.T) {
	t.Parallel()
	for name, hang := range map[string]func(ctx context.Context, over context.CancelFunc){
		"until its own timeout":    func(ctx context.Context, _ context.CancelFunc) { <-ctx.Done() },
		"until the timeout of all": func(_ context.Context, over context.CancelFunc) { over() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, "")
			r.stageExpired(t, mib, mib)
			ctx, over := context.WithTimeout(t.Context(), 20*time.Second)
			defer over()
			var asked atomic.Int32
			r.faults.del = func(ctx context.Context) error {
				if asked.Add(1) == 1 {
					return nil
				}
				for countFiles(t, r.dir) > 1 && ctx.Err() == nil {
					time.Sleep(time.Millisecond)
				}
				hang(ctx, over)
				return errStore
			}
			_, _ = r.Sweep(ctx, time.Hour)
			if name == "until its own timeout" && ctx.Err() != nil {
				t.Error("it used up the time of the sweep")
			}
			r.wantObjects(t, 1, 0, 1)
		})
	}
}

// A sweep that fails after it has deleted the object is repeated. Planted: a missing object is an error.
func TestObjectStorage_ASweepThatWasCutShortIsRepeated(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	r.stageExpired(t, mib)
	mustExec(t, r.db, `CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''cut''; END'`)
	mustExec(t, r.db, `CREATE TRIGGER cut BEFORE DELETE ON upload_objects FOR EACH ROW EXECUTE FUNCTION fail()`)
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

// Deleting a row by hand leaves its object to the sweep. Planted: a trigger that changes nothing.
func TestObjectStorage_ADeletedRowLeavesItsObjectToTheSweep(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	staged, err := r.stageSizes(t.Context(), "", mib, mib)
	if err != nil {
		t.Fatal(err)
	}
	if err := execute(r.db, sqlExpire)(t.Context(), staged[0].ID); err != nil {
		t.Fatal(err)
	}
	// Postgres cannot read the file and returns an error, not an empty file.
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
