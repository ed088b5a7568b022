package handlers_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// failsAt is a content whose reads fail from an offset on.
type failsAt struct {
	*strings.Reader
	at  int64
	err error
}

func (f failsAt) Read(b []byte) (int, error) {
	here := f.Size() - int64(f.Len())
	if here >= f.at {
		return 0, f.err
	}
	return f.Reader.Read(b[:min(int64(len(b)), f.at-here)])
}

func (failsAt) Close() error { return nil }

// brokenFile is a storage with one file, whose content fails at that offset.
func brokenFile(content string, at int64, err error) brokenStorage {
	return brokenStorage{open: func() (pendinguploads.File, io.ReadSeekCloser, error) {
		f := pendinguploads.File{Name: "notes.txt", MIMEType: "text/plain", Size: int64(len(content))}
		return f, failsAt{strings.NewReader(content), at, err}, nil
	}}
}

var anyFile = stagedFile{URI: "/" + uuid.NewString()}

func TestContent_StorageFailureHidesItsCause(t *testing.T) {
	t.Parallel()
	p, w := withStorage(t, brokenStorage{open: func() (pendinguploads.File, io.ReadSeekCloser, error) {
		return pendinguploads.File{}, nil, errStorage
	}})
	for range 2 { // there is one slot, so the first request must release it
		answered(t, fetch(t, p, w, anyFile), http.StatusInternalServerError, map[string]any{
			"error": "internal error; it has been logged", "code": "internal",
		})
	}
}

// If nothing of the file has been sent, the answer must be an error without the file's headers. Planted: the
// file's headers left on the error.
func TestContent_FailureBeforeTheFirstByteIsAnError(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		cause  error
		status int
		want   map[string]any
	}{
		{pendinguploads.ErrTruncated, http.StatusNotFound, pendingNotFound},
		{errStorage, http.StatusInternalServerError, map[string]any{"error": "internal error; it has been logged", "code": "internal"}},
	} {
		for _, header := range [][]string{nil, {"Range", "bytes=100-104"}} {
			p, w := withStorage(t, brokenFile(pattern(5000), 0, c.cause))
			r := fetch(t, p, w, anyFile, header...)
			answered(t, r, c.status, c.want)
			if got := r.Header.Get("Content-Type"); got != "application/json; charset=utf-8" {
				t.Errorf("Content-Type is %q", got)
			}
			for _, name := range []string{"Content-Range", "Content-Disposition", "ETag", "Repr-Digest", "Accept-Ranges"} {
				if got := r.Header.Get(name); got != "" {
					t.Errorf("%v: the error has the file's %s: %q", header, name, got)
				}
			}
		}
	}
}

// Planted: the rest filled up; the answer sent without its length.
func TestContent_FailureAfterTheFirstByteCutsTheAnswer(t *testing.T) {
	t.Parallel()
	content := pattern(500_000)
	for _, at := range []int64{1, 32 << 10, 499_999} {
		p, w := withStorage(t, brokenFile(content, at, errStorage))
		c := dial(t, p.URL)
		c.send(t, "GET "+pendingPath(w, anyFile, "/content")+" HTTP/1.1\r\nHost: platform\r\nX-Request-Id: cut\r\nAuthorization: Bearer "+w.Token+"\r\n\r\n")
		answer := c.answer(t)
		got, err := io.ReadAll(answer.Body)
		if !errors.Is(err, io.ErrUnexpectedEOF) || string(got) != content[:at] {
			t.Errorf("cut at %d: read %d bytes, %v", at, len(got), err)
		}
		finished(t, p, "cut")
		if logLine(t, p, "failed", "cut") == nil {
			t.Error("nothing in the log")
		}
		if logLine(t, p, "marking the file fetched failed", "cut") != nil {
			t.Error("the platform tried to mark a partial read as fetched")
		}
	}
}

// A file without one of its chunks is corrupt; no sweep causes that. The client must retry: a 404 would make
// it drop the file. Planted: reported as a deleted file.
func TestContent_MissingChunkIsAnInternalError(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	f := stage(t, p, w, pattern(2*mib))
	exec(t, p, "DELETE FROM pending_upload_chunks WHERE file_id = $1", f.ID())
	answered(t, fetch(t, p, w, f, "Range", "bytes=1048576-1048580"), http.StatusInternalServerError, map[string]any{
		"error": "internal error; it has been logged", "code": "internal",
	})
}
