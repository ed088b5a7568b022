package storagetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// mustStageOnce stages with a key, and checks whether that was a replay.
func (s suite) mustStageOnce(t *testing.T, ctx context.Context, workspace uuid.UUID, key string, wantReplayed bool, samples ...sample) []pendinguploads.File {
	t.Helper()
	staged, replayed, err := s.Storage.StageOnce(ctx, workspace, key, newFiles(samples...))
	if err != nil || replayed != wantReplayed || len(staged) != len(samples) {
		t.Fatalf("StageOnce: %d files, replayed %t, %v; want %d, %t", len(staged), replayed, err, len(samples), wantReplayed)
	}
	return staged
}

func (s suite) mustHaveRows(t *testing.T, ctx context.Context, workspace uuid.UUID, want int) {
	t.Helper()
	if rows, err := s.Inbox(ctx, workspace); err != nil || len(rows) != want {
		t.Errorf("%d inbox rows, %v; want %d", len(rows), err, want)
	}
}

// A replay returns the first answer, whatever has become of the files: the client missed exactly that.
func (s suite) onceReplays(t *testing.T, ctx context.Context) {
	workspace, samples := uuid.New(), newSamples(0, mib+1, 20)
	first := s.mustStageOnce(t, ctx, workspace, "key", false, samples...)
	other := s.Open(limits)
	for _, then := range []struct {
		what string
		do   func()
	}{
		{"at once", func() {}},
		{"acknowledged", func() { s.ack(t, ctx, first[0], true) }},
		{"expired", func() { s.expire(t, ctx, first[1]) }},
		{"swept", func() {
			for _, f := range first {
				if err := s.Delete(ctx, f.ID); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		then.do()
		for _, storage := range []pendinguploads.Storage{s.Storage, other} {
			again, replayed, err := storage.StageOnce(ctx, workspace, "key", newFiles(samples...))
			if err != nil || !replayed || len(again) != len(first) {
				t.Fatalf("%s: %d files, replayed %t, %v", then.what, len(again), replayed, err)
			}
			for i := range again {
				if show(again[i]) != show(first[i]) {
					t.Errorf("%s: file %d is now\n%s, was\n%s", then.what, i, show(again[i]), show(first[i]))
				}
			}
		}
	}
	s.mustHaveRows(t, ctx, workspace, len(samples))
	if files := s.list(t, ctx, workspace, pendinguploads.ListQuery{Filter: pendinguploads.All}); len(files) != 0 {
		t.Errorf("%d files were staged again", len(files))
	}
}

func (s suite) onceOtherFiles(t *testing.T, ctx context.Context) {
	workspace, a, b := uuid.New(), newSample(10), newSample(mib+1)
	s.mustStageOnce(t, ctx, workspace, "key", false, a, b)
	name, mimeType, data := a, a, a
	name.name, mimeType.mimeType, data.data = "other.bin", "text/plain", bytes.Repeat([]byte("x"), len(a.data))
	for what, files := range map[string][]sample{
		"other order": {b, a}, "other name": {name, b}, "other type": {mimeType, b}, "other content": {data, b},
		"one less": {a}, "one more": {a, b, newSample(1)}, "none": {},
	} {
		staged, replayed, err := s.Storage.StageOnce(ctx, workspace, "key", newFiles(files...))
		if staged != nil || replayed || !errors.Is(err, pendinguploads.ErrKeyReused) {
			t.Errorf("%s: %d files, replayed %t, %v; want ErrKeyReused", what, len(staged), replayed, err)
		}
	}
	s.mustHaveRows(t, ctx, workspace, 2)
	s.mustStageOnce(t, ctx, workspace, "key", true, a, b)
}

func (s suite) onceIndependent(t *testing.T, ctx context.Context) {
	workspace, other, f := uuid.New(), uuid.New(), newSample(10)
	for i, key := range []string{"key", "Key", "key ", `"key"`, strings.Repeat("~", 255), strings.Repeat("~", 254)} {
		s.mustStageOnce(t, ctx, workspace, key, false, f)
		s.mustStageOnce(t, ctx, workspace, key, true, f)
		s.mustHaveRows(t, ctx, workspace, i+1)
	}
	foreign := s.mustStageOnce(t, ctx, other, "key", false, f)[0]
	if foreign.Workspace != other {
		t.Errorf("the file is one of workspace %s", foreign.Workspace)
	}
	s.mustStageOnce(t, ctx, other, "key", true, f)
	s.mustHaveRows(t, ctx, other, 1)
	for range 2 { // an empty key is not stored
		s.mustStageOnce(t, ctx, other, "", false, f)
	}
	s.mustHaveRows(t, ctx, other, 3)
}

func (s suite) onceFailed(t *testing.T, ctx context.Context) {
	workspace := uuid.New()
	broken := newFiles(newSamples(10, mib+1)...)
	broken[1].Content = io.MultiReader(io.LimitReader(broken[1].Content, mib), iotest.ErrReader(errReader))
	cancelled, cancel := context.WithCancel(ctx)
	cut := newFiles(newSamples(10, mib+1)...)
	cut[1].Content = io.MultiReader(io.LimitReader(cut[1].Content, mib), call(cancel), cut[1].Content)
	for _, c := range []struct {
		ctx   context.Context
		files []pendinguploads.NewFile
		want  error
	}{{ctx, broken, errReader}, {cancelled, cut, context.Canceled}} {
		if staged, replayed, err := s.Storage.StageOnce(c.ctx, workspace, "key", c.files); staged != nil || replayed || !errors.Is(err, c.want) {
			t.Fatalf("%d files, replayed %t, %v; want %v", len(staged), replayed, err, c.want)
		}
		s.mustBeEmpty(t, ctx, workspace)
	}
	s.eventually(t, ctx, "the key is free", func() error { // the cancelled call may be rolled back a moment later
		_, replayed, err := s.Storage.StageOnce(ctx, workspace, "key", newFiles(newSample(7)))
		if err == nil && replayed {
			t.Error("a failed upload is replayed")
		}
		return err
	})
	s.mustHaveRows(t, ctx, workspace, 1)
}

// While the first call is running, a second with its key fails at once. Calls with another key or of
// another workspace are not affected.
func (s suite) onceInUse(t *testing.T, ctx context.Context) {
	workspace, f, other := uuid.New(), newSample(2*mib+1), s.Open(limits)
	slow := f.file()
	content, started, goOn := slow.Content, make(chan struct{}), make(chan struct{})
	finish := sync.OnceFunc(func() { close(goOn) })
	defer finish() // also if the test fails early
	slow.Content = io.MultiReader(io.LimitReader(content, mib), call(func() { close(started); <-goOn }), content)
	var first []pendinguploads.File
	ended := make(chan error, 1)
	go func() {
		var err error
		first, _, err = s.Storage.StageOnce(ctx, workspace, "key", []pendinguploads.NewFile{slow})
		ended <- err
	}()
	select {
	case <-started:
	case err := <-ended:
		t.Fatalf("it ended before it was read: %v", err)
	}
	for _, storage := range []pendinguploads.Storage{s.Storage, other} {
		for _, files := range [][]pendinguploads.NewFile{newFiles(f), newFiles(newSample(1))} {
			if staged, _, err := storage.StageOnce(ctx, workspace, "key", files); staged != nil || !errors.Is(err, pendinguploads.ErrKeyInUse) {
				t.Errorf("%d files, %v; want ErrKeyInUse", len(staged), err)
			}
		}
	}
	s.mustStageOnce(t, ctx, workspace, "another", false, f)
	s.mustStageOnce(t, ctx, uuid.New(), "key", false, f)
	finish()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	again := s.mustStageOnce(t, ctx, workspace, "key", true, f)
	if show(again[0]) != show(first[0]) {
		t.Errorf("replayed as\n%s, was\n%s", show(again[0]), show(first[0]))
	}
	s.mustHaveRows(t, ctx, workspace, 2)
}

func (s suite) onceConcurrent(t *testing.T, ctx context.Context) {
	storages := []pendinguploads.Storage{s.Storage, s.Open(limits)}
	for range 10 {
		workspace, f := uuid.New(), newSample(mib+1)
		var firsts atomic.Int32
		ids := make([]uuid.UUID, 12)
		start := make(chan struct{})
		g, ctx := errgroup.WithContext(ctx)
		for i := range ids {
			g.Go(func() error {
				<-start
				staged, replayed, err := storages[i%2].StageOnce(ctx, workspace, "key", newFiles(f))
				if errors.Is(err, pendinguploads.ErrKeyInUse) {
					return nil
				}
				if err != nil {
					return err
				}
				if ids[i] = staged[0].ID; !replayed {
					firsts.Add(1)
				}
				return nil
			})
		}
		close(start)
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		want := s.mustStageOnce(t, t.Context(), workspace, "key", true, f)[0].ID
		for _, id := range ids {
			if id != uuid.Nil && id != want {
				t.Errorf("answered with %s and with %s", id, want)
			}
		}
		if n := firsts.Load(); n != 1 {
			t.Errorf("%d were the first", n)
		}
		s.mustHaveRows(t, t.Context(), workspace, 1)
	}
}

func (s suite) onceExpired(t *testing.T, ctx context.Context) {
	workspace, before, after := uuid.New(), newSample(10), newSample(20)
	s.mustStageOnce(t, ctx, workspace, "key", false, before)
	if err := s.ExpireKey(ctx, workspace, "key"); err != nil {
		t.Fatal(err)
	}
	s.mustStageOnce(t, ctx, workspace, "key", false, after)
	s.mustStageOnce(t, ctx, workspace, "key", true, after)
	if _, _, err := s.Storage.StageOnce(ctx, workspace, "key", newFiles(before)); !errors.Is(err, pendinguploads.ErrKeyReused) {
		t.Errorf("the files of before: %v, want ErrKeyReused", err)
	}
	s.mustHaveRows(t, ctx, workspace, 2)
}
