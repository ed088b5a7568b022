package pendinguploads

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/google/uuid"
)

const (
	// maxReadAttempts is how often a read is attempted that fails without returning a byte. The second
	// attempt follows at once, the third after retryPause, the next after twice as long.
	maxReadAttempts = 4
	retryPause      = 100 * time.Millisecond

	// stallTimeout is how long a store may take to return the next bytes before the read is repeated.
	stallTimeout = 30 * time.Second

	// signedURLTTL is how long a signed URL is valid. Clients use it at once.
	signedURLTTL = 2 * time.Minute
)

// sqlOpenAny selects where the content of a file is, and its first bytes if they are in the row.
const sqlOpenAny = `
SELECT file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at,
  substring(content FROM 1 FOR $3),
  object_key,
  (SELECT store_id FROM upload_objects o WHERE o.object_key = pending_uploads.object_key)
FROM pending_uploads
WHERE file_id = $1 AND workspace_id = $2
  AND (acked_at IS NOT NULL OR expires_at > now())`

// errContentMissing reports a file whose content is not where its row says, because a folder is not
// mounted or a bucket is gone. It is not ErrTruncated: the content may come back.
var errContentMissing = errors.New("pendinguploads: content of a file is missing in its object store")

// objectRef says where an object is.
type objectRef struct {
	key   uuid.UUID
	store int // id in upload_stores
}

// locate returns a file and where its content is: an object, or if that is nil the database, and then
// the first bytes, at most so many.
func (s *ObjectStorage) locate(ctx context.Context, workspace, id uuid.UUID, bytes int) (File, *objectRef, []byte, error) {
	f := File{Workspace: workspace}
	var first []byte
	var key uuid.NullUUID
	var store sql.NullInt64
	row := s.postgres.db.QueryRowContext(ctx, sqlOpenAny, id, workspace, bytes)
	if err := row.Scan(append(f.columns(), &first, &key, &store)...); err != nil {
		return File{}, nil, nil, notFound(err)
	}
	if !key.Valid {
		return f, nil, first, nil
	}
	return f, &objectRef{key.UUID, int(store.Int64)}, nil, nil
}

// Open implements Storage. One query finds the content; an object store is not contacted before the
// first Read.
func (s *ObjectStorage) Open(ctx context.Context, workspace, id uuid.UUID) (File, io.ReadSeekCloser, error) {
	f, at, first, err := s.locate(ctx, workspace, id, openBytes)
	if err != nil {
		return File{}, nil, fmt.Errorf("pendinguploads: open %s: %w", id, err)
	}
	return f, &relocatingReader{storage: s, ctx: ctx, file: f, at: at, content: s.newReader(ctx, f, at, first)}, nil
}

// newReader returns a reader of the content at one location.
func (s *ObjectStorage) newReader(ctx context.Context, f File, at *objectRef, first []byte) io.ReadSeekCloser {
	if at == nil {
		return s.postgres.newRowReader(ctx, f, first)
	}
	return &objectReader{ctx: ctx, storage: s, id: f.ID, size: f.Size, at: *at}
}

// SignedURL returns a file and a URL from which anybody can download it for two minutes. The URL is ""
// if the file's content is in the database or in a store without such URLs. ErrNotFound.
func (s *ObjectStorage) SignedURL(ctx context.Context, workspace, id uuid.UUID) (File, string, error) {
	f, at, _, err := s.locate(ctx, workspace, id, 0)
	if err != nil {
		return File{}, "", fmt.Errorf("pendinguploads: sign a URL for %s: %w", id, err)
	}
	if at == nil {
		return f, "", nil
	}
	store, err := s.stores.get(ctx, at.store)
	if err != nil {
		return File{}, "", err
	}
	url, err := store.SignedURL(ctx, at.key, signedURLTTL)
	if err != nil {
		return File{}, "", fmt.Errorf("pendinguploads: sign a URL for %s: %w", id, err)
	}
	return f, url, nil
}

// relocatingReader reads a file and continues at the new location if its content is moved meanwhile.
type relocatingReader struct {
	storage *ObjectStorage
	ctx     context.Context // io.Reader has no other way to take one
	file    File
	at      *objectRef // nil: in the database
	content io.ReadSeekCloser
	offset  int64
}

// Read implements io.Reader.
func (r *relocatingReader) Read(b []byte) (int, error) {
	n, err := r.content.Read(b)
	if errors.Is(err, ErrTruncated) {
		if err = r.relocate(err); err == nil {
			n, err = r.content.Read(b)
		}
	}
	r.offset += int64(n)
	return n, err
}

// relocate finds the content again after a read reported that it is not where it was. It returns that
// error, which wraps ErrTruncated, only if the file is gone: a poller then gives the file up.
func (r *relocatingReader) relocate(truncated error) error {
	f, at, first, err := r.storage.locate(r.ctx, r.file.Workspace, r.file.ID, openBytes)
	switch {
	case errors.Is(err, ErrNotFound):
		return truncated
	case err != nil:
		return fmt.Errorf("pendinguploads: locate %s again: %w", r.file.ID, err)
	case at == nil && r.at == nil || at != nil && r.at != nil && *at == *r.at:
		return fmt.Errorf("%w: %v", errContentMissing, truncated) // not ErrTruncated: the file exists
	}
	_ = r.content.Close()
	r.at, r.content = at, r.storage.newReader(r.ctx, f, at, first)
	_, err = r.content.Seek(r.offset, io.SeekStart)
	return err
}

// Seek implements io.Seeker.
func (r *relocatingReader) Seek(offset int64, whence int) (int64, error) {
	at, err := r.content.Seek(offset, whence)
	if err == nil {
		r.offset = at
	}
	return at, err
}

// Close implements io.Closer.
func (r *relocatingReader) Close() error { return r.content.Close() }

// objectReader reads an object. It requests the object at the first Read, and again from the present
// offset if the response breaks off.
type objectReader struct {
	ctx     context.Context // io.Reader has no other way to take one
	storage *ObjectStorage
	id      uuid.UUID
	size    int64
	at      objectRef
	offset  int64         // where the next Read starts
	body    io.ReadCloser // nil: not requested
	next    int64         // offset of the next byte of body
	cancel  func()        // cancels the request of body
	closed  bool
}

// Read implements io.Reader.
func (r *objectReader) Read(b []byte) (int, error) {
	if r.closed {
		return 0, fmt.Errorf("pendinguploads: read %s: %w", r.id, fs.ErrClosed)
	}
	if r.offset >= r.size {
		return 0, io.EOF
	}
	if len(b) == 0 {
		return 0, nil
	}
	for attempt := 1; ; attempt++ {
		n, err := r.read(b[:min(int64(len(b)), r.size-r.offset)])
		if n > 0 {
			r.offset += int64(n)
			return n, nil // an error that came with bytes is returned by the next Read
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrTruncated
		}
		if err != nil && (attempt == maxReadAttempts || errors.Is(err, ErrTruncated) || r.pause(attempt) != nil) {
			return 0, fmt.Errorf("pendinguploads: read %s at %d: %w", r.id, r.offset, withContextError(r.ctx, err))
		}
	}
}

// pause waits before the next attempt, unless ctx ends.
func (r *objectReader) pause(attempt int) error {
	if attempt == 1 {
		return r.ctx.Err()
	}
	timer := time.NewTimer(retryPause << (attempt - 2))
	defer timer.Stop()
	select {
	case <-r.ctx.Done():
		return r.ctx.Err()
	case <-timer.C:
		return nil
	}
}

// read reads once, and closes the response if that fails.
func (r *objectReader) read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil { // a folder does not notice it
		return 0, err
	}
	if r.body == nil || r.next != r.offset {
		if err := r.request(); err != nil {
			return 0, err
		}
	}
	stalled := time.AfterFunc(r.storage.stallTimeout, r.cancel)
	n, err := r.body.Read(b)
	stalled.Stop()
	r.next += int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // request has checked the object's size, so there are more bytes
	}
	if err != nil {
		r.closeBody()
	}
	return n, err
}

// request requests the object from the present offset on.
func (r *objectReader) request() error {
	r.closeBody()
	store, err := r.storage.stores.get(r.ctx, r.at.store)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.ctx)
	stalled := time.AfterFunc(r.storage.stallTimeout, cancel)
	body, size, err := store.Read(ctx, r.at.key, r.offset)
	stalled.Stop()
	if err != nil {
		cancel()
		return err
	}
	r.body, r.next, r.cancel = body, r.offset, cancel
	if size != r.size {
		r.closeBody()
		return fmt.Errorf("%w: the object has %d bytes of %d", ErrTruncated, size, r.size)
	}
	return nil
}

func (r *objectReader) closeBody() {
	if r.body != nil {
		_ = r.body.Close()
		r.cancel()
		r.body = nil
	}
}

// Seek implements io.Seeker.
func (r *objectReader) Seek(offset int64, whence int) (int64, error) {
	at, err := seek(r.id, r.offset, r.size, offset, whence)
	if err == nil {
		r.offset = at
	}
	return at, err
}

// Close implements io.Closer.
func (r *objectReader) Close() error {
	r.closed = true
	r.closeBody()
	return nil
}
