package storagetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// A sample is a file to stage, and what must be read back.
type sample struct {
	name, mimeType string
	data           []byte
}

// newSample returns size random bytes, so that a wrong offset shows.
func newSample(size int) sample {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(size))
	data := make([]byte, size)
	rand.NewChaCha8(seed).Read(data) // never fails
	return sample{name: fmt.Sprintf("sample-%d.bin", size), mimeType: "application/octet-stream", data: data}
}

func newSamples(sizes ...int) []sample {
	samples := make([]sample, len(sizes))
	for i, size := range sizes {
		samples[i] = newSample(size)
	}
	return samples
}

// file returns the sample with its true size and digest.
func (s sample) file() pendinguploads.NewFile {
	return pendinguploads.NewFile{
		Name: s.name, MIMEType: s.mimeType, Size: int64(len(s.data)), SHA256: sha256.Sum256(s.data),
		Content: bytes.NewReader(s.data),
	}
}

func newFiles(samples ...sample) []pendinguploads.NewFile {
	files := make([]pendinguploads.NewFile, len(samples))
	for i, s := range samples {
		files[i] = s.file()
	}
	return files
}

// stage stages samples as one upload and checks the result.
func (s suite) stage(t *testing.T, ctx context.Context, workspace uuid.UUID, samples ...sample) []pendinguploads.File {
	t.Helper()
	staged, err := s.Storage.Stage(ctx, workspace, newFiles(samples...))
	if err != nil {
		t.Fatalf("Stage: %v", err)
	}
	if len(staged) != len(samples) {
		t.Fatalf("Stage returned %d files for %d", len(staged), len(samples))
	}
	for i, f := range staged {
		want := pendinguploads.File{
			ID: f.ID, Workspace: workspace, Name: samples[i].name, MIMEType: samples[i].mimeType, Size: int64(len(samples[i].data)),
			SHA256: sha256.Sum256(samples[i].data), CreatedAt: f.CreatedAt, ExpiresAt: f.ExpiresAt,
		}
		if f.ID == uuid.Nil || show(f) != show(want) {
			t.Errorf("file %d staged as\n%s, want\n%s", i, show(f), show(want))
		}
		// Both times are the backend's, and may be taken at both ends of staging.
		if life := f.ExpiresAt.Sub(f.CreatedAt); life > limits.TTL+testTimeout || life < limits.TTL-testTimeout {
			t.Errorf("file %d is kept for %s, want %s", i, life, limits.TTL)
		}
	}
	return staged
}

func (s suite) stageOne(t *testing.T, ctx context.Context, workspace uuid.UUID, size int) (sample, pendinguploads.File) {
	t.Helper()
	f := newSample(size)
	return f, s.stage(t, ctx, workspace, f)[0]
}

// open opens a file that must exist, and closes it at the end of the test.
func (s suite) open(t *testing.T, ctx context.Context, f pendinguploads.File) io.ReadSeekCloser {
	t.Helper()
	_, content, err := s.Storage.Open(ctx, f.Workspace, f.ID)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { content.Close() })
	return content
}

// mustRead checks that the file can be read and is the sample.
func (s suite) mustRead(t *testing.T, ctx context.Context, f pendinguploads.File, want sample) {
	t.Helper()
	opened, content, err := s.Storage.Open(ctx, f.Workspace, f.ID)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer content.Close()
	if show(opened) != show(s.get(t, ctx, f)) {
		t.Errorf("Open returns\n%s, Get returns\n%s", show(opened), show(s.get(t, ctx, f)))
	}
	if got, err := io.ReadAll(content); err != nil || !bytes.Equal(got, want.data) {
		t.Errorf("read %d bytes of %d, equal: %t, error: %v", len(got), len(want.data), bytes.Equal(got, want.data), err)
	}
	if n, err := content.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("a read after the end returns %d, %v", n, err)
	}
	if err := content.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func (s suite) get(t *testing.T, ctx context.Context, f pendinguploads.File) pendinguploads.File {
	t.Helper()
	got, err := s.Storage.Get(ctx, f.Workspace, f.ID)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	return got
}

func (s suite) ack(t *testing.T, ctx context.Context, f pendinguploads.File, wantFirst bool) {
	t.Helper()
	acked, first, err := s.Storage.Ack(ctx, f.Workspace, f.ID)
	if err != nil || first != wantFirst {
		t.Fatalf("Ack: first %t, %v; want %t", first, err, wantFirst)
	}
	if acked.ID != f.ID || acked.Name != f.Name || acked.Size != f.Size || acked.State() != pendinguploads.Acked {
		t.Errorf("Ack returns %+v, want %+v, acked", acked, f)
	}
}

// mustBeMissing checks that no call of the workspace finds the file.
func (s suite) mustBeMissing(t *testing.T, ctx context.Context, workspace, id uuid.UUID) {
	t.Helper()
	if _, _, err := s.Storage.Open(ctx, workspace, id); !errors.Is(err, pendinguploads.ErrNotFound) {
		t.Errorf("Open: %v, want ErrNotFound", err)
	}
	if _, err := s.Storage.Get(ctx, workspace, id); !errors.Is(err, pendinguploads.ErrNotFound) {
		t.Errorf("Get: %v, want ErrNotFound", err)
	}
	if _, first, err := s.Storage.Ack(ctx, workspace, id); first || !errors.Is(err, pendinguploads.ErrNotFound) {
		t.Errorf("Ack: first %t, %v, want ErrNotFound", first, err)
	}
	if first, err := s.Storage.MarkFetched(ctx, workspace, id); first || err != nil {
		t.Errorf("MarkFetched: first %t, %v, want false and no error", first, err)
	}
	for _, f := range s.list(t, ctx, workspace, pendinguploads.ListQuery{Filter: pendinguploads.All}) {
		if f.ID == id {
			t.Error("List has it")
		}
	}
	after := pendinguploads.ListQuery{Filter: pendinguploads.All, After: uuid.NullUUID{UUID: id, Valid: true}}
	if _, err := s.Storage.List(ctx, workspace, after); !errors.Is(err, pendinguploads.ErrNotFound) {
		t.Errorf("List after it: %v, want ErrNotFound", err)
	}
}

// mustBeEmpty checks that the workspace has neither a file nor an inbox row.
func (s suite) mustBeEmpty(t *testing.T, ctx context.Context, workspace uuid.UUID) {
	t.Helper()
	ctx = context.WithoutCancel(ctx) // the test may have cancelled it
	files := s.list(t, ctx, workspace, pendinguploads.ListQuery{Filter: pendinguploads.All})
	rows, err := s.Inbox(ctx, workspace)
	if err != nil || len(files) != 0 || len(rows) != 0 {
		t.Errorf("%d files and %d inbox rows are left (%v)", len(files), len(rows), err)
	}
}

func (s suite) list(t *testing.T, ctx context.Context, workspace uuid.UUID, q pendinguploads.ListQuery) []pendinguploads.File {
	t.Helper()
	files, err := s.Storage.List(ctx, workspace, q)
	if err != nil || files == nil {
		t.Fatalf("List: %v, %v", files, err)
	}
	return files
}

// eventually calls do until it succeeds, at most ten seconds.
func (s suite) eventually(t *testing.T, ctx context.Context, what string, do func() error) {
	t.Helper()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	late := time.After(10 * time.Second)
	for {
		err := do()
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-late:
			t.Fatalf("not soon: %s: %v", what, err)
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// show renders all fields of a file, and equal instants in different zones alike.
func show(f pendinguploads.File) string {
	at := func(t *time.Time) string {
		if t == nil {
			return "never"
		}
		return t.UTC().Format(time.RFC3339Nano)
	}
	return fmt.Sprintf("%s %s %q %q %d %x created %s fetched %s acked %s expires %s", f.Workspace, f.ID, f.Name, f.MIMEType,
		f.Size, f.SHA256, at(&f.CreatedAt), at(f.FetchedAt), at(f.AckedAt), at(&f.ExpiresAt))
}
