package spool

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

var testLimits = pendinguploads.Limits{MaxFileBytes: 4 << 20, MaxBatchBytes: 8 << 20}

func newBatch(t *testing.T, limits pendinguploads.Limits, dir string) *Batch {
	t.Helper()
	b := NewBatch(limits, dir)
	t.Cleanup(func() { b.Close() })
	return b
}

func randomBytes(size int) []byte {
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(size), byte(size >> 8), byte(size >> 16)}).Read(data)
	return data
}

// mustBeEmptyDir checks that the folder has no file that a crash would leave behind.
func mustBeEmptyDir(t *testing.T, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the folder for temporary files has %v (%v)", entries, err)
	}
}

// Planted once each and caught here: the offset of a moved file not updated; the bytes that were in memory
// not written to the file, or not removed from memory; a file after the first in the temporary file kept
// in memory; the memory released while an empty file is in it.
func TestBatch_FilesComeBackByteForByte(t *testing.T) {
	t.Parallel()
	const half, mib = maxMemory / 2, maxMemory
	cases := [][]int{
		{}, {0}, {1}, {0, 0}, {copyBytes}, {mib - 1}, {mib}, {mib + 1}, {2 * mib},
		{mib, 0}, {mib, 1}, {mib - 1, 1}, {mib - 1, 2}, {0, mib + 1}, {0, 0, 3 * mib, 0}, {mib + 1, 0, 5},
		{half, half}, {half, half + 1}, {half, half, 1, mib, 0, 7}, {10, 20, 3 * mib, 30, mib + 1}, {1, mib, 1},
	}
	random := rand.New(rand.NewPCG(3, 4))
	for range 15 {
		sizes := make([]int, 1+random.IntN(6))
		for i := range sizes {
			sizes[i] = random.IntN([]int{2, 1000, copyBytes + 2, half, mib + copyBytes}[random.IntN(5)])
		}
		cases = append(cases, sizes)
	}
	for _, sizes := range cases {
		t.Run(fmt.Sprint(sizes), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			b := newBatch(t, testLimits, dir)
			total := 0
			for i, size := range sizes {
				if err := b.Add(fmt.Sprintf("dir/a %d", i), "Text/Plain; charset=utf-8", iotest.DataErrReader(bytes.NewReader(randomBytes(size)))); err != nil {
					t.Fatalf("Add %d: %v", i, err)
				}
				total += size
				if onDisk := b.spill != nil; onDisk != (total > maxMemory) {
					t.Errorf("after %d bytes there is a temporary file: %t", total, onDisk)
				}
				mustBeEmptyDir(t, dir)
			}
			if b.Len() != len(sizes) {
				t.Errorf("Len is %d", b.Len())
			}
			for range 2 { // each call gives the files from their start
				mustBeFiles(t, b.Files(), sizes)
			}
		})
	}
}

func mustBeFiles(t *testing.T, files []pendinguploads.NewFile, sizes []int) {
	t.Helper()
	if len(files) != len(sizes) {
		t.Fatalf("%d files for %d", len(files), len(sizes))
	}
	for i, f := range files {
		want := randomBytes(sizes[i])
		if name := fmt.Sprintf("a_%d", i); f.Name != name || f.MIMEType != "text/plain" {
			t.Errorf("file %d is %q, %q", i, f.Name, f.MIMEType)
		}
		if f.Size != int64(len(want)) || f.SHA256 != sha256.Sum256(want) {
			t.Errorf("file %d has size %d for %d, or a wrong digest", i, f.Size, len(want))
		}
		if got, err := io.ReadAll(f.Content); err != nil || !bytes.Equal(got, want) {
			t.Errorf("file %d has %d bytes for %d, or wrong ones (%v)", i, len(got), len(want), err)
		}
	}
}

// Memory holds small files only, and nothing of a file that is in the temporary file.
func TestBatch_MemoryIsBounded(t *testing.T) {
	t.Parallel()
	b := newBatch(t, testLimits, t.TempDir())
	for i, c := range []struct{ size, inMemory int }{{1000, 1000}, {3 << 20, 1000}, {10, 1000}} {
		if err := b.Add("a", "", bytes.NewReader(randomBytes(c.size))); err != nil {
			t.Fatal(err)
		}
		if b.memory.Len() != c.inMemory || b.memory.Cap() > 2*maxMemory {
			t.Errorf("after file %d: %d bytes in memory of %d, want %d", i, b.memory.Len(), b.memory.Cap(), c.inMemory)
		}
	}
	large := newBatch(t, testLimits, t.TempDir())
	if err := large.Add("a", "", bytes.NewReader(randomBytes(3<<20))); err != nil {
		t.Fatal(err)
	}
	if large.memory != nil {
		t.Error("a batch whose only file is on disk keeps its memory")
	}
}

// countingReader is an endless stream that counts the bytes that are read.
type countingReader struct{ taken int64 }

func (r *countingReader) Read(b []byte) (int, error) {
	r.taken += int64(len(b))
	return len(b), nil
}

func TestBatch_OneByteTooManyIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	limits := pendinguploads.Limits{MaxFileBytes: 3<<20 - 5, MaxBatchBytes: 4 << 20}
	exact := func() *Batch {
		b := newBatch(t, limits, t.TempDir())
		if err := b.Add("a", "", io.LimitReader(&countingReader{}, limits.MaxFileBytes)); err != nil {
			t.Fatalf("a file of exactly the limit: %v", err)
		}
		return b
	}
	rest := limits.MaxBatchBytes - limits.MaxFileBytes
	if err := exact().Add("b", "", io.LimitReader(&countingReader{}, rest)); err != nil {
		t.Errorf("files of exactly the limit together: %v", err)
	}
	for _, c := range []struct {
		why   string
		batch *Batch
		limit int64
		want  error
	}{
		{"a file", newBatch(t, limits, t.TempDir()), limits.MaxFileBytes, pendinguploads.ErrTooLarge},
		{"files together", exact(), rest, pendinguploads.ErrBatchTooLarge},
	} {
		endless := &countingReader{}
		if err := c.batch.Add("b", "", endless); !errors.Is(err, c.want) {
			t.Errorf("%s, endless: %v, want %v", c.why, err, c.want)
		}
		if endless.taken > c.limit+copyBytes {
			t.Errorf("%s: %d bytes were read for a limit of %d", c.why, endless.taken, c.limit)
		}
	}
	if err := exact().Add("b", "", io.LimitReader(&countingReader{}, rest+1)); !errors.Is(err, pendinguploads.ErrBatchTooLarge) {
		t.Errorf("one byte too many together: %v", err)
	}
	if err := newBatch(t, limits, t.TempDir()).Add("b", "", io.LimitReader(&countingReader{}, limits.MaxFileBytes+1)); !errors.Is(err, pendinguploads.ErrTooLarge) {
		t.Errorf("a file with one byte too many: %v", err)
	}
}

// Only io.EOF itself is the end. An error that wraps it reports that the connection was cut; taking it for
// the end would deliver half a file.
func TestBatch_ErrorOfTheReaderComesBack(t *testing.T) {
	t.Parallel()
	broken := errors.New("connection reset")
	for _, want := range []error{broken, io.ErrUnexpectedEOF, fmt.Errorf("read body: %w", io.EOF)} {
		for _, offset := range []int{0, 100, maxMemory + 1} {
			r := io.MultiReader(bytes.NewReader(make([]byte, offset)), iotest.ErrReader(want))
			b := newBatch(t, testLimits, t.TempDir())
			err := b.Add("some file", "", r)
			if !errors.Is(err, want) || errors.Is(err, ErrTempFile) || !strings.Contains(err.Error(), "some_file") {
				t.Errorf("the reader fails after %d bytes with %q, Add returns %v", offset, want, err)
			}
			if b.Len() != 0 {
				t.Error("the file that failed is part of the batch")
			}
		}
	}
}

func TestBatch_FailingDiskIsErrTempFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for why, dir := range map[string]string{"no such folder": filepath.Join(t.TempDir(), "missing"), "not a folder": file} {
		b := newBatch(t, testLimits, dir)
		if err := b.Add("a", "", bytes.NewReader(make([]byte, maxMemory))); err != nil {
			t.Errorf("%s: what fits in memory needs no disk, but: %v", why, err)
		}
		if err := b.Add("b", "", bytes.NewReader(make([]byte, 1))); !errors.Is(err, ErrTempFile) {
			t.Errorf("%s: %v, want ErrTempFile", why, err)
		}
	}

	b := newBatch(t, testLimits, t.TempDir())
	if err := b.Add("a", "", bytes.NewReader(make([]byte, maxMemory+1))); err != nil {
		t.Fatal(err)
	}
	b.spill.Close() // stands for a disk that fills up: no write succeeds any more
	if err := b.Add("b", "", bytes.NewReader(make([]byte, 1))); !errors.Is(err, ErrTempFile) || !errors.Is(err, os.ErrClosed) {
		t.Errorf("a write that fails: %v, want ErrTempFile and the cause", err)
	}
}

func TestBatch_CloseReleasesAll(t *testing.T) {
	t.Parallel()
	b := NewBatch(testLimits, t.TempDir())
	for _, size := range []int{10, maxMemory} {
		if err := b.Add("a", "", bytes.NewReader(make([]byte, size))); err != nil {
			t.Fatal(err)
		}
	}
	onDisk := b.Files()[1].Content
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if b.memory != nil || b.Len() != 0 {
		t.Errorf("after Close there is memory, or %d files", b.Len())
	}
	if _, err := onDisk.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close the temporary file is open: %v", err)
	}
	if err := NewBatch(testLimits, "").Close(); err != nil {
		t.Errorf("Close of an empty batch: %v", err)
	}
}
