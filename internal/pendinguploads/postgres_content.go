package pendinguploads

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/google/uuid"
)

const (
	// openBytes is what Open reads of a file: all of nearly every one, and of a long one enough to
	// begin with. Measured with 25 MiB: the first byte is there after 1.6 ms, with the whole row
	// after 2.9 ms.
	openBytes = 128 << 10

	// maxAhead is how many readers may have a second row in memory, the one after that which is
	// being sent. It is for when there are few: many keep the machine busy without.
	maxAhead = 8

	// maxFetches is how many rows are read from the database at once: each is in memory twice then.
	maxFetches = 4
)

const (
	sqlOpen = `SELECT ` + fileColumns + `, substring(content FROM 1 FOR $3) FROM pending_uploads ` +
		`WHERE file_id = $1 AND workspace_id = $2 AND ` + readable

	// Rows are read whole: to PostgreSQL a part of one costs twice as much as all of it, for it
	// makes one copy more, and so gives memory back that it takes again with the next row.
	sqlReadFirst = `SELECT content FROM pending_uploads WHERE file_id = $1`

	sqlReadChunk = `SELECT data FROM pending_upload_chunks WHERE file_id = $1 AND seq = $2`
)

// Open implements Storage. One query answers whether there is such a file and brings its
// first bytes.
func (p *Postgres) Open(ctx context.Context, workspace, id uuid.UUID) (File, io.ReadSeekCloser, error) {
	f := File{Workspace: workspace}
	var first []byte
	row := p.db.QueryRowContext(ctx, sqlOpen, id, workspace, openBytes)
	if err := row.Scan(append(f.columns(), &first)...); err != nil {
		return File{}, nil, fmt.Errorf("pendinguploads: open %s: %w", id, notFound(err))
	}
	return f, p.content(ctx, f, first), nil
}

// content reads a file of which first is there already.
func (p *Postgres) content(ctx context.Context, f File, first []byte) *content {
	return &content{ctx: ctx, storage: p, id: f.ID, size: f.Size, piece: piece{data: first}}
}

// A piece is what a file has from start on: what Open has read of it, or a row.
type piece struct {
	start int64
	data  []byte
	from  *[]byte // the storage's buffer that they are in; nil: they are in none
	err   error
}

func (p *piece) end() int64 { return p.start + int64(len(p.data)) }

// content reads a file row by row. While one is being sent the next one is read, if few do so;
// between two, it holds no connection.
type content struct {
	ctx     context.Context //nolint:containedctx // io.Reader has no other way to take one
	storage *Postgres
	id      uuid.UUID
	size    int64
	offset  int64 // where the next Read starts
	piece   piece
	ahead   chan piece // what is being read; nil: nothing
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
	if c.offset < c.piece.start || c.offset >= c.piece.end() {
		if err := c.load(c.offset / ChunkBytes); err != nil {
			return 0, err
		}
	}
	c.readAhead(c.piece.end() / ChunkBytes)
	n := copy(b, c.piece.data[c.offset-c.piece.start:])
	c.offset += int64(n)
	return n, nil
}

// load makes a row the present piece.
func (c *content) load(seq int64) error {
	c.free()
	var next piece
	if c.ahead != nil {
		next = <-c.ahead
		c.ahead = nil
		c.storage.aheads.Release(1)
	}
	if next.from == nil && next.err == nil || next.start != seq*ChunkBytes {
		c.storage.putChunk(next.from)
		next = c.fetch(seq)
	}
	c.piece = next
	if next.err == nil && c.offset >= next.end() {
		next.err = ErrTruncated
	}
	if next.err != nil {
		c.free()
		return fmt.Errorf("pendinguploads: read %s at %d: %w", c.id, c.offset, withContextError(c.ctx, next.err))
	}
	return nil
}

// withContextError adds to an error that ctx has ended, if it has and the error does not say so: PostgreSQL
// tells only that it was asked to stop, and whose error comes first is chance.
func withContextError(ctx context.Context, err error) error {
	if ended := ctx.Err(); ended != nil && !errors.Is(err, ended) {
		return fmt.Errorf("%w: %w", ended, err)
	}
	return err
}

// free gives back what the present piece is in; then there is none.
func (c *content) free() {
	c.storage.putChunk(c.piece.from)
	c.piece = piece{}
}

// readAhead begins to read a row, if there is one, and nothing else is being read.
func (c *content) readAhead(seq int64) {
	if c.ahead != nil || seq*ChunkBytes >= c.size || c.piece.end() >= c.size || !c.storage.aheads.TryAcquire(1) {
		return
	}
	ahead := make(chan piece, 1)
	c.ahead = ahead
	go func() { ahead <- c.fetch(seq) }()
}

// fetch reads a row. Its bytes are copied from where lib/pq has them to a buffer that is used again:
// database/sql would make a new one for each.
func (c *content) fetch(seq int64) piece {
	next := piece{start: seq * ChunkBytes, err: ErrTruncated}
	query, args := sqlReadFirst, []any{c.id}
	if seq > 0 {
		query, args = sqlReadChunk, append(args, seq)
	}
	if err := c.storage.fetches.Acquire(c.ctx, 1); err != nil {
		next.err = err
		return next
	}
	defer c.storage.fetches.Release(1)
	rows, err := c.storage.db.QueryContext(c.ctx, query, args...)
	if err != nil {
		next.err = err
		return next
	}
	defer rows.Close()
	if rows.Next() {
		var raw sql.RawBytes
		next.err = rows.Scan(&raw)
		next.from = c.storage.chunks.Get().(*[]byte)
		next.data = append((*next.from)[:0], raw...)
	}
	// Close first: until then the bytes are held for us, and Err would wait for who waits for that,
	// for ever, if the context has ended meanwhile.
	if err := errors.Join(rows.Close(), rows.Err()); err != nil {
		next.err = err
	}
	return next
}

// Seek implements io.Seeker.
func (c *content) Seek(offset int64, whence int) (int64, error) {
	at, err := seek(c.id, c.offset, c.size, offset, whence)
	if err == nil {
		c.offset = at
	}
	return at, err
}

// seek returns the position that a Seek asks for.
func seek(id uuid.UUID, at, size, offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += at
	case io.SeekEnd:
		offset += size
	}
	if offset < 0 {
		return 0, fmt.Errorf("pendinguploads: seek %s: negative position", id)
	}
	return offset, nil
}

// Close implements io.Closer. It does not wait for what is still being read.
func (c *content) Close() error {
	c.closed = true
	c.free()
	if ahead := c.ahead; ahead != nil {
		c.ahead = nil
		go func() {
			c.storage.putChunk((<-ahead).from)
			c.storage.aheads.Release(1)
		}()
	}
	return nil
}
