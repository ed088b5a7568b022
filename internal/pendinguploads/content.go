package pendinguploads

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/google/uuid"
)

// Open implements Storage. One query answers whether there is such a file and brings its
// first piece, which is all of nearly every file.
func (p *Postgres) Open(ctx context.Context, workspace, id uuid.UUID) (File, io.ReadSeekCloser, error) {
	f := File{Workspace: workspace}
	var first []byte
	if err := p.db.QueryRowContext(ctx, sqlOpen, id, workspace).Scan(append(f.columns(), &first)...); err != nil {
		return File{}, nil, fmt.Errorf("pendinguploads: open %s: %w", id, notFound(err))
	}
	return f, &content{ctx: ctx, storage: p, id: f.ID, size: f.Size, piece: first}, nil
}

// content reads a file from its pieces, one at a time: it holds one in memory and, between
// two, no connection.
type content struct {
	ctx     context.Context //nolint:containedctx // io.Reader has no other way to take one
	storage *Postgres
	id      uuid.UUID
	size    int64
	offset  int64 // where the next Read starts
	seq     int64 // which piece is in memory
	piece   []byte
	closed  bool
}

// Read implements io.Reader.
func (c *content) Read(b []byte) (int, error) {
	if c.closed {
		return 0, fmt.Errorf("pendinguploads: read %s: %w", c.id, fs.ErrClosed)
	}
	if c.offset >= c.size {
		return 0, io.EOF
	}
	if len(b) == 0 {
		return 0, nil
	}
	if seq := c.offset / ChunkBytes; seq != c.seq {
		if err := c.load(seq); err != nil {
			return 0, err
		}
	}
	within := c.offset - c.seq*ChunkBytes
	if within >= int64(len(c.piece)) {
		return 0, fmt.Errorf("pendinguploads: read %s: piece %d is short: %w", c.id, c.seq, ErrTruncated)
	}
	n := copy(b, c.piece[within:])
	c.offset += int64(n)
	return n, nil
}

func (c *content) load(seq int64) error {
	var err error
	var piece []byte
	if seq == 0 {
		err = c.storage.db.QueryRowContext(c.ctx, sqlReadFirst, c.id).Scan(&piece)
	} else {
		err = c.storage.db.QueryRowContext(c.ctx, sqlReadChunk, c.id, seq).Scan(&piece)
	}
	if err = notFound(err); errors.Is(err, ErrNotFound) {
		err = ErrTruncated
	}
	if err != nil {
		return fmt.Errorf("pendinguploads: read %s at %d: %w", c.id, c.offset, err)
	}
	c.seq, c.piece = seq, piece
	return nil
}

// Seek implements io.Seeker.
func (c *content) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += c.offset
	case io.SeekEnd:
		offset += c.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("pendinguploads: seek %s: negative position", c.id)
	}
	c.offset = offset
	return offset, nil
}

// Close implements io.Closer.
func (c *content) Close() error {
	c.closed, c.piece = true, nil
	return nil
}
