package pendinguploads_test

import (
	"context"
	"testing"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// The connection that commits an upload is cut at each of its messages, as in
// TestStage_ConnectionCutLeavesAllOrNothing: afterwards there are all files with their objects, or none,
// and the sweep deletes every object without a file and no other.
//
// Planted once each and caught here: objects deleted although the answer to the commit was lost (visible
// files without content); objects that stay garbage although files claim them.
func TestObjectStorage_ConnectionCutLosesNoBytes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name        string
		forward     func(message []byte) []byte
		answersLost int
	}{
		{"before the server gets it", func([]byte) []byte { return nil }, 0},
		{"before its answer", func(message []byte) []byte { return message }, 1},
	} {
		for _, key := range []string{"", "key"} {
			t.Run(c.name+", key "+key, func(t *testing.T) {
				t.Parallel()
				lost := 0
				for n := 1; ; n++ {
					cut, visible, err := stageCut(t, &cutter{forward: c.forward}, n, key)
					if err == nil && visible != 3 || !cut && err != nil {
						t.Fatalf("message %d, cut %t: %v, %d files", n, cut, err, visible)
					}
					if err != nil && visible == 3 {
						lost++
					}
					if !cut {
						break
					}
				}
				if lost != c.answersLost {
					t.Errorf("%d times Stage failed and the files were there, want %d", lost, c.answersLost)
				}
			})
		}
	}
}

func stageCut(t *testing.T, c *cutter, n int, key string) (cut bool, visible int, stageErr error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	dsn := pgtest.New(t)
	db := openPool(t, connector(t, dsn, false))
	cuttable := connector(t, dsn, true)
	cuttable.Dialer(c)
	staging := openPool(t, cuttable)
	staging.SetMaxOpenConns(1)
	r := &rig{db: db, staging: staging, dir: t.TempDir(), faults: &faults{}}
	limits := testLimits
	limits.QuotaBytes, limits.QuotaFiles = 8<<20, 5
	r.postgres = pendinguploads.NewPostgres(db, staging, activity.New(db), limits)
	r.ObjectStorage = newObjectStorage(t, r.postgres, r.open, "file://"+r.dir)

	var backend int
	if err := staging.QueryRowContext(ctx, sqlBackend).Scan(&backend); err != nil {
		t.Fatal(err)
	}
	c.arm(n)
	_, stageErr = r.stageSizes(ctx, key, 10, mib, 2*mib+7)
	if cut = c.disarm(); cut {
		(&cutStage{db: db}).awaitEnd(t, ctx, backend)
	}
	files, err := r.List(ctx, workspaceID, pendinguploads.ListQuery{})
	if err != nil || len(files) != 0 && len(files) != 3 {
		t.Fatalf("message %d: %d files, %v", n, len(files), err)
	}
	if err := r.sweepGarbage(t); err != nil {
		t.Error(err)
	}
	objects := 0
	if len(files) > 0 {
		objects = 2
	}
	r.wantObjects(t, objects, objects, objects)
	for _, f := range files {
		mustRead(t, r, f)
	}
	return cut, len(files), stageErr
}
