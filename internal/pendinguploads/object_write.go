package pendinguploads

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
)

// writeObject writes the content of a file to an object and checks that it has the file's size.
func writeObject(ctx context.Context, store ObjectStore, key uuid.UUID, f NewFile) error {
	// The content that package spool makes can be read in place, and again if a request is retried.
	if inPlace, ok := f.Content.(interface {
		io.ReaderAt
		io.ReadSeeker
		Size() int64
	}); ok {
		at, err := inPlace.Seek(0, io.SeekCurrent)
		if err != nil {
			return fmt.Errorf("read content: %w", err)
		}
		if inPlace.Size()-at != f.Size {
			return fmt.Errorf("%w: content has %d bytes, not its size of %d", ErrInvalidFile, inPlace.Size()-at, f.Size)
		}
		return store.Write(ctx, key, f.Size, io.NewSectionReader(inPlace, at, f.Size))
	}
	exact := &exactReader{r: f.Content, size: f.Size, left: f.Size}
	err := store.Write(ctx, key, f.Size, exact)
	if exact.err != io.EOF {
		err = errors.Join(exact.err, err) // the store may report less, or succeed with fewer bytes
	}
	if err == nil && exact.err == nil {
		err = fmt.Errorf("the store did not read all of %d bytes", f.Size)
	}
	return err
}

// exactReader reads content and fails at its end if it is shorter or longer than size.
type exactReader struct {
	r          io.Reader
	size, left int64
	err        error // io.EOF: all of it was read and had the right size
}

// Read implements io.Reader.
func (e *exactReader) Read(b []byte) (int, error) {
	if e.err != nil || len(b) == 0 {
		return 0, e.err
	}
	if e.left == 0 {
		var more [1]byte
		switch n, err := io.ReadFull(e.r, more[:]); {
		case n != 0:
			e.err = fmt.Errorf("%w: content is longer than its size of %d", ErrInvalidFile, e.size)
		case err != io.EOF:
			e.err = fmt.Errorf("read content: %w", err)
		default:
			e.err = io.EOF
		}
		return 0, e.err
	}
	n, err := e.r.Read(b[:min(int64(len(b)), e.left)])
	e.left -= int64(n)
	switch {
	case err == io.EOF && e.left > 0:
		e.err = fmt.Errorf("%w: content is shorter than its size of %d", ErrInvalidFile, e.size)
	case err != nil && err != io.EOF:
		e.err = fmt.Errorf("read content: %w", err)
	}
	return n, e.err
}
