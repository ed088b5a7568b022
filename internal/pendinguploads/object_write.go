package pendinguploads

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
)

// errStoreStalled: a store took no byte of an object, and gave no answer, for the stall timeout.
var errStoreStalled = errors.New("pendinguploads: the store stalled")

// writeObject writes the content of a file, which must be as long as it says. If the store stalls, a content that can
// be read again is written once more.
func (b *ObjectStorage) writeObject(ctx context.Context, store ObjectStore, key uuid.UUID, f NewFile) error {
	// What a Batch makes can be read in place, and again if a request has to be sent again.
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
			return b.writeOnce(ctx, func(ctx context.Context, stalled *time.Timer) error {
				return store.Write(ctx, key, f.Size, watchedSection{io.NewSectionReader(inPlace, at, f.Size), stalled, b.stall})
			})
		}
		if err = write(); errors.Is(err, errStoreStalled) {
			err = write()
		}
		return err
	}
	exact := &exactReader{r: f.Content, size: f.Size, left: f.Size}
	err := b.writeOnce(ctx, func(ctx context.Context, stalled *time.Timer) error {
		return store.Write(ctx, key, f.Size, watchedReader{exact, stalled, b.stall})
	})
	if exact.err != io.EOF {
		err = errors.Join(exact.err, err) // a store may say less of it, or have taken less
	}
	if err == nil && exact.err == nil {
		err = fmt.Errorf("the store has not read all of %d bytes", f.Size)
	}
	return err
}

// writeOnce calls write, and cancels it when the timer fires, which write's content resets.
func (b *ObjectStorage) writeOnce(ctx context.Context, write func(context.Context, *time.Timer) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(b.stall, func() { cancel(errStoreStalled) })
	defer stalled.Stop()
	err := write(ctx, stalled)
	if err != nil && errors.Is(context.Cause(ctx), errStoreStalled) {
		return fmt.Errorf("%w: %w", errStoreStalled, err)
	}
	return err
}

// watchedReader resets a timer whenever it is read. The time that reading takes does not count: it is not the store's.
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

// watchedSection is a watchedReader that can be read anywhere.
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

// exactReader reads a content, and fails at its end if it was shorter or longer than it should be.
type exactReader struct {
	r          io.Reader
	size, left int64
	err        error // io.EOF: all was read, and it was right
}

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
