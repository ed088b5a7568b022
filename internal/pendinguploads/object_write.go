package pendinguploads

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
)

// errStoreStalled: a store read no byte of an object, and sent no response, for the stall timeout.
var errStoreStalled = errors.New("pendinguploads: the object store stalled")

// writeObject writes the content of a file to an object and checks that it has the file's size. If the store stalls,
// content that can be read again is written once more.
func (s *ObjectStorage) writeObject(ctx context.Context, store ObjectStore, key uuid.UUID, f NewFile) error {
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
		write := func() error {
			return s.writeOnce(ctx, func(ctx context.Context, stalled *time.Timer) error {
				return store.Write(ctx, key, f.Size, watchedSection{io.NewSectionReader(inPlace, at, f.Size), stalled, s.stallTimeout})
			})
		}
		if err = write(); errors.Is(err, errStoreStalled) {
			err = write()
		}
		return err
	}
	exact := &exactReader{r: f.Content, size: f.Size, left: f.Size}
	err := s.writeOnce(ctx, func(ctx context.Context, stalled *time.Timer) error {
		return store.Write(ctx, key, f.Size, watchedReader{exact, stalled, s.stallTimeout})
	})
	if exact.err != io.EOF {
		err = errors.Join(exact.err, err) // the store may report less, or succeed with fewer bytes
	}
	if err == nil && exact.err == nil {
		err = fmt.Errorf("the store did not read all of %d bytes", f.Size)
	}
	return err
}

// writeOnce calls write and cancels it when the timer fires. Reading the content resets the timer.
func (s *ObjectStorage) writeOnce(ctx context.Context, write func(context.Context, *time.Timer) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(s.stallTimeout, func() { cancel(errStoreStalled) })
	defer stalled.Stop()
	err := write(ctx, stalled)
	if err != nil && errors.Is(context.Cause(ctx), errStoreStalled) {
		return fmt.Errorf("%w: %w", errStoreStalled, err)
	}
	return err
}

// watchedReader resets the timer after each read. The time that a read takes does not count: the store does not cause it.
type watchedReader struct {
	io.Reader
	timer *time.Timer
	stall time.Duration
}

func (w watchedReader) Read(b []byte) (int, error) {
	w.timer.Stop()
	defer w.timer.Reset(w.stall)
	return w.Reader.Read(b)
}

// watchedSection is a watchedReader that can also be read at any offset.
type watchedSection struct {
	*io.SectionReader
	timer *time.Timer
	stall time.Duration
}

func (w watchedSection) Read(b []byte) (int, error) {
	return watchedReader{w.SectionReader, w.timer, w.stall}.Read(b)
}

func (w watchedSection) ReadAt(b []byte, offset int64) (int, error) {
	w.timer.Stop()
	defer w.timer.Reset(w.stall)
	return w.SectionReader.ReadAt(b, offset)
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
