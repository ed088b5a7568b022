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
	// Where the bytes of a file are, and its first ones if they are in the row.
	sqlOpenAny = `SELECT ` + fileColumns + `, substring(content FROM 1 FOR $3), object_key, ` +
		`(SELECT store_id FROM upload_objects o WHERE o.object_key = pending_uploads.object_key) FROM pending_uploads ` +
		`WHERE file_id = $1 AND workspace_id = $2 AND ` + readable

	// maxResumes is how often a read that breaks is taken up again without a byte in between, and
	// resumePause how long it waits before the second time; then twice as long each time.
	maxResumes  = 4
	resumePause = 100 * time.Millisecond

	// stallTimeout is how long a store may take for the next bytes; then it is asked again.
	stallTimeout = 30 * time.Second

	// linkTTL is how long a URL is good that bypasses the platform. It is used at once.
	linkTTL = 2 * time.Minute
)

// errContentMissing: the file is there, but its bytes are not where its row says: a folder that is not
// mounted, a bucket that is gone. They may come back.
var errContentMissing = errors.New("pendinguploads: bytes of a file are missing")

// object is where an object is.
type object struct {
	key   uuid.UUID
	store int
}

// find asks for a file, where its bytes are, and its first ones if they are in the database.
func (b *ObjectStorage) find(ctx context.Context, workspace, id uuid.UUID, bytes int) (File, *object, []byte, error) {
	f := File{Workspace: workspace}
	var first []byte
	var key uuid.NullUUID
	var store sql.NullInt64
	row := b.db.QueryRowContext(ctx, sqlOpenAny, id, workspace, bytes)
	if err := row.Scan(append(f.columns(), &first, &key, &store)...); err != nil {
		return File{}, nil, nil, notFound(err)
	}
	if !key.Valid {
		return f, nil, first, nil
	}
	return f, &object{key.UUID, int(store.Int64)}, nil, nil
}

// Open implements Storage. One query tells where the bytes are; a store is asked when they are read.
func (b *ObjectStorage) Open(ctx context.Context, workspace, id uuid.UUID) (File, io.ReadSeekCloser, error) {
	f, at, first, err := b.find(ctx, workspace, id, openBytes)
	if err != nil {
		return File{}, nil, fmt.Errorf("pendinguploads: open %s: %w", id, err)
	}
	return f, &following{bucket: b, ctx: ctx, file: f, at: at, content: b.contentAt(ctx, f, at, first)}, nil
}

func (b *ObjectStorage) contentAt(ctx context.Context, f File, at *object, first []byte) io.ReadSeekCloser {
	if at == nil {
		return b.content(ctx, f, first)
	}
	return &objectContent{ctx: ctx, bucket: b, id: f.ID, size: f.Size, at: *at}
}

// SignedURL returns a URL from which anybody can read the file for a while, "" if its bytes are not
// where there are such URLs. ErrNotFound.
func (b *ObjectStorage) SignedURL(ctx context.Context, workspace, id uuid.UUID) (File, string, error) {
	f, at, _, err := b.find(ctx, workspace, id, 0)
	if err != nil {
		return File{}, "", fmt.Errorf("pendinguploads: link to %s: %w", id, err)
	}
	if at == nil {
		return f, "", nil
	}
	store, err := b.stores.get(ctx, at.store)
	if err != nil {
		return File{}, "", err
	}
	link, err := store.SignedURL(ctx, at.key, linkTTL)
	if err != nil {
		return File{}, "", fmt.Errorf("pendinguploads: link to %s: %w", id, err)
	}
	return f, link, nil
}

// following reads a file, also if it is moved to another place meanwhile.
type following struct {
	bucket  *ObjectStorage
	ctx     context.Context //nolint:containedctx // io.Reader has no other way to take one
	file    File
	at      *object // nil: in the database
	content io.ReadSeekCloser
	offset  int64
}

// Read implements io.Reader.
func (r *following) Read(b []byte) (int, error) {
	n, err := r.content.Read(b)
	if errors.Is(err, ErrTruncated) {
		if err = r.follow(err); err == nil {
			n, err = r.content.Read(b)
		}
	}
	r.offset += int64(n)
	return n, err
}

// follow goes to where the bytes are now, after an error that tells that they are not where they were.
// It returns that error only if the file is gone: a poller gives such a file up for good.
func (r *following) follow(truncated error) error {
	f, at, first, err := r.bucket.find(r.ctx, r.file.Workspace, r.file.ID, openBytes)
	switch {
	case errors.Is(err, ErrNotFound):
		return truncated
	case err != nil:
		return fmt.Errorf("pendinguploads: look where %s is: %w", r.file.ID, err)
	case at == nil && r.at == nil || at != nil && r.at != nil && *at == *r.at:
		return fmt.Errorf("%w: %v", errContentMissing, truncated) //nolint:errorlint // not truncated: the file is there
	}
	_ = r.content.Close()
	r.at, r.content = at, r.bucket.contentAt(r.ctx, f, at, first)
	_, err = r.content.Seek(r.offset, io.SeekStart)
	return err
}

// Seek implements io.Seeker.
func (r *following) Seek(offset int64, whence int) (int64, error) {
	at, err := r.content.Seek(offset, whence)
	if err == nil {
		r.offset = at
	}
	return at, err
}

// Close implements io.Closer.
func (r *following) Close() error { return r.content.Close() }

// objectContent reads an object. It asks for it when the first byte is wanted, and again from where
// it was when the answer breaks off.
type objectContent struct {
	ctx    context.Context //nolint:containedctx // io.Reader has no other way to take one
	bucket *ObjectStorage
	id     uuid.UUID
	size   int64
	at     object
	offset int64         // where the next Read starts
	body   io.ReadCloser // nil: not asked for
	next   int64         // offset of body
	cancel func()        // ends body
	closed bool
}

// Read implements io.Reader.
func (c *objectContent) Read(b []byte) (int, error) {
	if c.closed {
		return 0, fmt.Errorf("pendinguploads: read %s: %w", c.id, fs.ErrClosed)
	}
	if c.offset >= c.size {
		return 0, io.EOF
	}
	if len(b) == 0 {
		return 0, nil
	}
	for attempt := 1; ; attempt++ {
		n, err := c.read(b[:min(int64(len(b)), c.size-c.offset)])
		if n > 0 {
			c.offset += int64(n)
			return n, nil // an error after bytes comes again without
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrTruncated
		}
		if err != nil && (attempt == maxResumes || errors.Is(err, ErrTruncated) || c.pause(attempt) != nil) {
			return 0, fmt.Errorf("pendinguploads: read %s at %d: %w", c.id, c.offset, withContextError(c.ctx, err))
		}
	}
}

// pause waits before an attempt that follows another one, unless ctx ends.
func (c *objectContent) pause(attempt int) error {
	if attempt == 1 {
		return c.ctx.Err()
	}
	timer := time.NewTimer(resumePause << (attempt - 2))
	defer timer.Stop()
	select {
	case <-c.ctx.Done():
		return c.ctx.Err()
	case <-timer.C:
		return nil
	}
}

// read reads once, and forgets the answer if it is over.
func (c *objectContent) read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil { // a folder would go on
		return 0, err
	}
	if c.body == nil || c.next != c.offset {
		if err := c.ask(); err != nil {
			return 0, err
		}
	}
	stalled := time.AfterFunc(c.bucket.stall, c.cancel)
	n, err := c.body.Read(b)
	stalled.Stop()
	c.next += int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // the rest is there: ask has seen how long it is
	}
	if err != nil {
		c.drop()
	}
	return n, err
}

// ask begins to read the object at the offset.
func (c *objectContent) ask() error {
	c.drop()
	store, err := c.bucket.stores.get(c.ctx, c.at.store)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(c.ctx)
	stalled := time.AfterFunc(c.bucket.stall, cancel)
	body, size, err := store.Read(ctx, c.at.key, c.offset)
	stalled.Stop()
	if err != nil {
		cancel()
		return err
	}
	c.body, c.next, c.cancel = body, c.offset, cancel
	if size != c.size {
		c.drop()
		return fmt.Errorf("%w: the object has %d bytes of %d", ErrTruncated, size, c.size)
	}
	return nil
}

func (c *objectContent) drop() {
	if c.body != nil {
		_ = c.body.Close()
		c.cancel()
		c.body = nil
	}
}

// Seek implements io.Seeker.
func (c *objectContent) Seek(offset int64, whence int) (int64, error) {
	at, err := seek(c.id, c.offset, c.size, offset, whence)
	if err == nil {
		c.offset = at
	}
	return at, err
}

// Close implements io.Closer.
func (c *objectContent) Close() error {
	c.closed = true
	c.drop()
	return nil
}
