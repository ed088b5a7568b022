package pendinguploads_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// moveAll moves all misplaced files and returns their number.
func moveAll(t *testing.T, b *pendinguploads.ObjectStorage) (moved int) {
	t.Helper()
	files, err := b.Misplaced(t.Context(), uuid.Nil, 100)
	if err != nil {
		t.Fatal(err)
	}
	n, _, err := b.CountMisplaced(t.Context())
	if err != nil || int(n) != len(files) {
		t.Errorf("%d files to move, %d listed, %v", n, len(files), err)
	}
	for _, f := range files {
		done, err := b.Move(t.Context(), f)
		if err != nil || !done {
			t.Errorf("moved %t, %v", done, err)
		}
		moved++
		if again, err := b.Move(t.Context(), f); err != nil || again {
			t.Errorf("moved again %t, %v", again, err)
		}
	}
	return moved
}

// Files move from the database to a folder, to another folder and back, and keep their bytes, ids and
// states; the content they leave behind is garbage and is swept. Planted: the chunks not deleted; the old
// object not released, or deleted at once.
func TestMove_KeepsEveryByteWhereverItGoes(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	inDatabase := r.on(t, "")
	sizes := []int{0, 10, inlineBytes + 1, mib, 2*mib + 7}
	var files []pendinguploads.NewFile
	for _, size := range sizes {
		files = append(files, newFile("a.bin", content(size)))
	}
	staged, err := inDatabase.Stage(t.Context(), workspaceID, files)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Ack(t.Context(), workspaceID, staged[4].ID); err != nil {
		t.Fatal(err)
	}
	other := r.on(t, "file://"+t.TempDir())
	for i, c := range []struct {
		to     *pendinguploads.ObjectStorage
		moved  int
		stored int // objects in r's folder
		chunks int
	}{{r.ObjectStorage, 3, 3, 0}, {other, 3, 0, 0}, {r.ObjectStorage, 3, 3, 0}, {inDatabase, 3, 0, 2}, {inDatabase, 0, 0, 2}} {
		if moved := moveAll(t, c.to); moved != c.moved {
			t.Errorf("step %d: moved %d, want %d", i, moved, c.moved)
		}
		// Not deleted at once: a standby may not know of the move yet.
		if n, err := pendinguploads.ReadGarbage(t.Context(), r.db); n != 0 || err != nil {
			t.Errorf("step %d: %d objects are to be deleted already (%v)", i, n, err)
		}
		if err := r.sweepGarbage(t); err != nil {
			t.Error(err)
		}
		r.wantObjects(t, map[bool]int{true: 3}[i < 3], map[bool]int{true: 3}[i < 3], c.stored)
		var chunks int
		if err := r.db.QueryRow(`SELECT count(*) FROM pending_upload_chunks`).Scan(&chunks); err != nil || chunks != c.chunks {
			t.Errorf("step %d: %d chunks (%v), want %d", i, chunks, err, c.chunks)
		}
		for _, f := range staged {
			mustRead(t, c.to, f)
		}
	}
}

// Planted: the digest of the content that is read back not compared.
func TestMove_WhatIsNotTheFileStaysWhereItIs(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	staged, err := r.postgres.Stage(t.Context(), workspaceID, []pendinguploads.NewFile{newFile("a.bin", content(mib))})
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, r.db, `UPDATE pending_uploads SET content = set_byte(content, 1000, 99)`)
	if moved, err := r.Move(t.Context(), staged[0]); moved || !errors.Is(err, pendinguploads.ErrDigestMismatch) {
		t.Errorf("moved %t, %v", moved, err)
	}
	r.wantObjects(t, 1, 0, 0)
	mustExec(t, r.db, `UPDATE pending_uploads SET content = set_byte(content, 1000, $1)`, int(content(mib)[1000]))
	r.faults.write = func(context.Context, uuid.UUID) error { return errStore }
	if moved, err := r.Move(t.Context(), staged[0]); moved || !errors.Is(err, errStore) {
		t.Errorf("moved %t, %v", moved, err)
	}
	r.faults.write = func(ctx context.Context, _ uuid.UUID) error { return execute(r.db, sqlDelete)(ctx, staged[0].ID) }
	if moved, err := r.Move(t.Context(), staged[0]); moved || err != nil {
		t.Errorf("swept meanwhile: moved %t, %v", moved, err)
	}
	if moved, err := r.Move(t.Context(), staged[0]); moved || err != nil {
		t.Errorf("swept before: moved %t, %v", moved, err)
	}
	r.wantObjects(t, 3, 0, 0)
	staged, err = r.postgres.Stage(t.Context(), workspaceID, []pendinguploads.NewFile{newFile("a.bin", content(mib))})
	if err != nil {
		t.Fatal(err)
	}
	r.faults.write, r.faults.read = nil, failingRead
	if moved, err := r.Move(t.Context(), staged[0]); moved || !errors.Is(err, errStore) {
		t.Errorf("cannot be read back: moved %t, %v", moved, err)
	}
}
