package pendinguploads_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"testing"
	"testing/iotest"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// A read that breaks off is resumed at its offset, a few times. A read that has lost bytes never ends with
// io.EOF. Planted: a broken body taken for the end; resumed from the start; the object's size not checked.
func TestObjectStorage_ABrokenReadIsResumed(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	staged, err := r.stageSizes(t.Context(), "", mib)
	if err != nil {
		t.Fatal(err)
	}
	data := content(mib)
	asked := 0
	cut := func(err error, n int64) func(int64) (io.ReadCloser, int64, error) {
		return func(offset int64) (io.ReadCloser, int64, error) {
			asked++
			rest := data[offset:]
			return io.NopCloser(io.MultiReader(bytes.NewReader(rest[:min(n, int64(len(rest)))]), iotest.ErrReader(err))), mib, nil
		}
	}
	for _, broken := range []error{io.EOF, io.ErrUnexpectedEOF, errStore} {
		asked = 0
		r.faults.read = cut(broken, mib/8)
		mustRead(t, r, staged[0])
		if asked != 8 {
			t.Errorf("cut eight times with %v: requested %d times", broken, asked)
		}
	}
	open := func(ctx context.Context) io.ReadSeekCloser {
		_, c, err := r.Open(ctx, workspaceID, staged[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	for want, read := range map[error]func(int64) (io.ReadCloser, int64, error){
		errStore:            func(int64) (io.ReadCloser, int64, error) { asked++; return nil, 0, errStore },
		io.ErrUnexpectedEOF: cut(io.EOF, 0),
		// The file exists, so a reader must retry, not give it up.
		pendinguploads.ErrContentMissing: func(int64) (io.ReadCloser, int64, error) { asked++; return nil, 0, fs.ErrNotExist },
	} {
		asked, r.faults.read = 0, read
		n, err := open(t.Context()).Read(make([]byte, 10))
		if n != 0 || !errors.Is(err, want) || errors.Is(err, pendinguploads.ErrTruncated) || asked > 4 {
			t.Errorf("%d bytes, %v after %d requests; want %v", n, err, asked, want)
		}
	}
	r.faults.read = func(int64) (io.ReadCloser, int64, error) { return io.NopCloser(bytes.NewReader(data)), mib - 1, nil }
	if n, err := open(t.Context()).Read(make([]byte, 10)); n != 0 || !errors.Is(err, pendinguploads.ErrContentMissing) {
		t.Errorf("an object of another length: %d bytes, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	gone := open(ctx)
	r.faults.read = func(int64) (io.ReadCloser, int64, error) { cancel(); return nil, 0, fs.ErrNotExist }
	if n, err := gone.Read(make([]byte, 10)); n != 0 || !errors.Is(err, context.Canceled) || errors.Is(err, pendinguploads.ErrTruncated) {
		t.Errorf("whether the file exists is unknown: %d bytes, %v", n, err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	r.faults.read = func(int64) (io.ReadCloser, int64, error) {
		if asked++; asked == 2 {
			cancel()
		}
		return nil, 0, errStore
	}
	asked = 0
	if n, err := open(ctx).Read(make([]byte, 10)); n != 0 || !errors.Is(err, errStore) || asked > 3 {
		t.Errorf("the context ends: %d bytes, %v, requested %d times", n, err, asked)
	}
}

// A reader continues when the content of its file is moved. Planted: the location not looked up again.
func TestObjectStorage_AReaderFollowsAFileThatIsMoved(t *testing.T) {
	t.Parallel()
	r := newRig(t, "")
	other := r.on(t, "file://"+t.TempDir())
	first, err := r.stageSizes(t.Context(), "", mib)
	if err != nil {
		t.Fatal(err)
	}
	_, c, err := r.Open(t.Context(), workspaceID, first[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	head := make([]byte, 1000)
	if _, err := io.ReadFull(c, head); err != nil {
		t.Fatal(err)
	}
	second, err := other.Stage(t.Context(), uuid.New(), []pendinguploads.NewFile{newFile("b.bin", content(mib))})
	if err != nil {
		t.Fatal(err)
	}
	// The object of one file becomes that of the other, and the reader's own is deleted.
	mustExec(t, r.db, `DELETE FROM pending_uploads WHERE file_id = '`+second[0].ID.String()+`'`)
	mustExec(t, r.db, `UPDATE pending_uploads SET object_key = (SELECT object_key FROM upload_objects WHERE file_id = '`+second[0].ID.String()+`')`)
	broke := false
	r.faults.read = func(int64) (io.ReadCloser, int64, error) {
		if !broke {
			broke = true
			return nil, 0, fs.ErrNotExist
		}
		return nil, 0, nil
	}
	if _, err := c.Seek(1000, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Seek(-1, io.SeekStart); err == nil {
		t.Error("a negative position")
	}
	// The old object is being read at this moment; seeking requests it again.
	if _, err := c.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, content(mib)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if !broke {
		t.Error("it never missed its object")
	}
}

// Content that is not where it was ends the read with ErrTruncated only if the file is gone. If the file
// exists, or nobody can say, the error allows a retry. Planted: each of the three taken for another.
func TestObjectStorage_AReaderWhoseContentIsGoneReportsWhy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		meanwhile func(*rig)
		truncated bool
	}{
		"the file is gone":   {func(r *rig) { mustExec(t, r.db, `DELETE FROM pending_uploads`) }, true},
		"the bytes are gone": {func(*rig) {}, false},
		"no database":        {func(r *rig) { r.db.Close() }, false},
	} {
		r := newRig(t, "")
		staged, err := r.stageSizes(t.Context(), "", mib)
		if err != nil {
			t.Fatal(err)
		}
		_, content, err := r.Open(t.Context(), workspaceID, staged[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		c.meanwhile(r)
		r.faults.read = func(int64) (io.ReadCloser, int64, error) { return nil, 0, fs.ErrNotExist }
		n, err := io.Copy(io.Discard, content)
		if n != 0 || err == nil || errors.Is(err, pendinguploads.ErrTruncated) != c.truncated {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
		content.Close()
	}
}
