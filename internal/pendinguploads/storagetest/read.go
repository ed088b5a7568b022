package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/iotest"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

func (s suite) readSeeker(t *testing.T, ctx context.Context) {
	for _, size := range []int{0, 1, 1000} {
		want, f := s.stageOne(t, ctx, uuid.New(), size)
		if err := iotest.TestReader(s.open(t, ctx, f), want.data); err != nil {
			t.Errorf("size %d: %v", size, err)
		}
	}
}

func (s suite) seeks(t *testing.T, ctx context.Context) {
	const size = 3*mib + 1
	want, f := s.stageOne(t, ctx, uuid.New(), size)
	content := s.open(t, ctx, f)
	offsets := []int64{size - 1, 0, mib - 1, mib, mib + 1, 2*mib - 1, 3 * mib, 3*mib - 50, 1}
	random := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		offsets = append(offsets, random.Int64N(size))
	}
	position := int64(0)
	for i, offset := range offsets {
		from, whence := offset, i%3
		switch whence {
		case io.SeekCurrent:
			from -= position
		case io.SeekEnd:
			from -= size
		}
		if at, err := content.Seek(from, whence); err != nil || at != offset {
			t.Fatalf("Seek(%d, %d): %d, %v; want %d", from, whence, at, err, offset)
		}
		got := make([]byte, min(100, size-offset))
		if n, err := io.ReadFull(content, got); err != nil || !bytes.Equal(got, want.data[offset:][:len(got)]) {
			t.Fatalf("%d bytes at %d, error %v, or they are not the file's", n, offset, err)
		}
		position = offset + int64(len(got))
	}
	for _, beyond := range []int64{size, size + 1, 1 << 40} {
		if at, err := content.Seek(beyond, io.SeekStart); err != nil || at != beyond {
			t.Errorf("Seek(%d): %d, %v", beyond, at, err)
		}
		if n, err := content.Read(make([]byte, 10)); n != 0 || err != io.EOF {
			t.Errorf("Read at %d: %d, %v; want EOF", beyond, n, err)
		}
	}
	if _, err := content.Seek(-1, io.SeekStart); err == nil {
		t.Error("Seek before the start succeeded")
	}
}

func (s suite) serveContent(t *testing.T, ctx context.Context) {
	const size = 2*mib + 5
	want, f := s.stageOne(t, ctx, uuid.New(), size)
	for _, c := range []struct {
		ranges   string
		status   int
		from, to int // the bytes of the body
	}{
		{"", http.StatusOK, 0, size},
		{"bytes=0-0", http.StatusPartialContent, 0, 1},
		{fmt.Sprintf("bytes=%d-%d", mib-1, mib), http.StatusPartialContent, mib - 1, mib + 1},
		{fmt.Sprintf("bytes=%d-", mib), http.StatusPartialContent, mib, size},
		{"bytes=-6", http.StatusPartialContent, size - 6, size},
		{fmt.Sprintf("bytes=%d-", size), http.StatusRequestedRangeNotSatisfiable, 0, 0},
	} {
		request := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
		if c.ranges != "" {
			request.Header.Set("Range", c.ranges)
		}
		answer := httptest.NewRecorder()
		http.ServeContent(answer, request, f.Name, f.CreatedAt, s.open(t, ctx, f))
		if answer.Code != c.status {
			t.Errorf("%q: status %d, want %d", c.ranges, answer.Code, c.status)
		} else if c.to > 0 && !bytes.Equal(answer.Body.Bytes(), want.data[c.from:c.to]) {
			t.Errorf("%q: %d bytes, want %d, or they are not the file's", c.ranges, answer.Body.Len(), c.to-c.from)
		}
	}
}

func (s suite) independentReaders(t *testing.T, ctx context.Context) {
	want, f := s.stageOne(t, ctx, uuid.New(), mib+10)
	one, other := s.open(t, ctx, f), s.open(t, ctx, f)
	head := make([]byte, mib+1)
	if _, err := io.ReadFull(one, head); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(io.MultiReader(other, one))
	if err != nil || !bytes.Equal(append(head, rest[len(want.data):]...), want.data) || !bytes.Equal(rest[:len(want.data)], want.data) {
		t.Errorf("two readers got %d bytes and the wrong ones, or an error: %v", len(rest), err)
	}
}

// A backend may go on reading a swept file that it holds open. It may not end early without an error.
func (s suite) sweptMidRead(t *testing.T, ctx context.Context) {
	const size = 3*mib + 1
	for _, offset := range []int64{0, 1, mib - 1, mib, 2 * mib, size - 1} {
		want, f := s.stageOne(t, ctx, uuid.New(), size)
		content := s.open(t, ctx, f)
		if _, err := io.CopyN(io.Discard, content, offset); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(ctx, f.ID); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(content)
		mustBePartOf(t, got, want.data[offset:])
		if err != nil && !errors.Is(err, pendinguploads.ErrTruncated) || err == nil && len(got) != size-int(offset) {
			t.Errorf("swept at %d: %d bytes of %d more, %v", offset, len(got), size-offset, err)
		}
		s.mustBeMissing(t, ctx, f.Workspace, f.ID)
	}
}

func (s suite) cancelledRead(t *testing.T, ctx context.Context) {
	const size = 2*mib + 1
	want, f := s.stageOne(t, ctx, uuid.New(), size)
	cancelled, cancel := context.WithCancel(ctx)
	content := s.open(t, cancelled, f)
	head := make([]byte, 10)
	if _, err := io.ReadFull(content, head); err != nil {
		t.Fatal(err)
	}
	cancel()
	got, err := io.ReadAll(content)
	mustBePartOf(t, got, want.data[len(head):])
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%d bytes of %d more, %v; want the context's error", len(got), size-len(head), err)
	}
	s.mustRead(t, ctx, f, want)
}

func (s suite) closedReader(t *testing.T, ctx context.Context) {
	_, f := s.stageOne(t, ctx, uuid.New(), 100)
	content := s.open(t, ctx, f)
	if err := content.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := content.Read(make([]byte, 10)); n != 0 || err == nil || errors.Is(err, io.EOF) {
		t.Errorf("Read after Close: %d, %v; want an error that is not the end of the file", n, err)
	}
}

// mustBePartOf checks that the bytes that were read are a prefix of the sample.
func mustBePartOf(t *testing.T, got, want []byte) {
	t.Helper()
	if !bytes.HasPrefix(want, got) {
		t.Errorf("the %d bytes read are not the file's", len(got))
	}
}
