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
	// openBytes is how much content Open reads: all of nearly every file, and the beginning of a long
	// one. Measured with 25 MiB: the first byte arrives after 1.6 ms, with the whole first row after 2.9 ms.
	openBytes = 128 << 10

	// maxReadAheads is how many readers may hold a second row in memory, the one after the row that is
	// being sent. It helps when there are few readers; many keep the machine busy without it.
	maxReadAheads = 8

	// maxRowReads is how many rows are read from the database at the same time. While it is read, each
	// is in memory twice.
	maxRowReads = 4
)

const (
	sqlOpen = `
SELECT file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at,
  substring(content FROM 1 FOR $3)
FROM pending_uploads
WHERE file_id = $1 AND workspace_id = $2
  AND (acked_at IS NOT NULL OR expires_at > now())`

	// Rows are read whole: reading a part of one costs PostgreSQL twice as much, because it makes one
	// more copy, whose memory it frees and allocates again for each row.
	sqlReadFirst = `SELECT content FROM pending_uploads WHERE file_id = $1`

	sqlReadChunk = `SELECT data FROM pending_upload_chunks WHERE file_id = $1 AND seq = $2`
)

// Open implements Storage. One query finds the file and reads its first bytes.
func (p *Postgres) Open(ctx context.Context, workspace, id uuid.UUID) (File, io.ReadSeekCloser, error) {
	f := File{Workspace: workspace}
	var first []byte
	row := p.db.QueryRowContext(ctx, sqlOpen, id, workspace, openBytes)
	if err := row.Scan(append(f.columns(), &first)...); err != nil {
		return File{}, nil, fmt.Errorf("pendinguploads: open %s: %w", id, notFound(err))
	}
	return f, p.newRowReader(ctx, f, first), nil
}

// newRowReader returns a reader of f, whose first bytes were read already.
func (p *Postgres) newRowReader(ctx context.Context, f File, first []byte) *rowReader {
	return &rowReader{ctx: ctx, storage: p, id: f.ID, size: f.Size, window: window{data: first}}
}

// A window is a part of a file that a reader holds in memory: what Open has read, or a row.
type window struct {
	start  int64 // offset in the file
	data   []byte
	buffer *[]byte // of the storage, in which data is; nil: data is in none
	err    error
}

func (w *window) end() int64 { return w.start + int64(len(w.data)) }

// rowReader reads a file row by row. If there are few readers, it reads the next row while the
// present one is being sent. It holds no connection between two rows.
type rowReader struct {
	ctx     context.Context // io.Reader has no other way to take one
	storage *Postgres
	id      uuid.UUID
	size    int64
	offset  int64 // where the next Read starts
	window  window
	ahead   chan window // receives the row that is being read ahead; nil: none is
	closed  bool
}

// Read implements io.Reader.
func (r *rowReader) Read(b []byte) (int, error) {
	if r.closed {
		return 0, fmt.Errorf("pendinguploads: read %s: %w", r.id, fs.ErrClosed)
	}
	if r.offset >= r.size {
		return 0, io.EOF
	}
	if len(b) == 0 {
		return 0, nil
	}
	if r.offset < r.window.start || r.offset >= r.window.end() {
		if err := r.loadRow(r.offset / ChunkBytes); err != nil {
			return 0, err
		}
	}
	r.readAhead(r.window.end() / ChunkBytes)
	n := copy(b, r.window.data[r.offset-r.window.start:])
	r.offset += int64(n)
	return n, nil
}

// loadRow replaces the window by a row.
func (r *rowReader) loadRow(seq int64) error {
	r.freeWindow()
	var next window
	if r.ahead != nil {
		next = <-r.ahead
		r.ahead = nil
		r.storage.readAheads.Release(1)
	}
	if next.buffer == nil && next.err == nil || next.start != seq*ChunkBytes {
		r.storage.putBuffer(next.buffer)
		next = r.readRow(seq)
	}
	r.window = next
	if next.err == nil && r.offset >= next.end() {
		next.err = ErrTruncated
	}
	if next.err != nil {
		r.freeWindow()
		return fmt.Errorf("pendinguploads: read %s at %d: %w", r.id, r.offset, withContextError(r.ctx, next.err))
	}
	return nil
}

// withContextError adds the error of ctx to err if ctx has ended and err does not wrap it. PostgreSQL
// reports only a cancelled statement, and whether its error or that of database/sql arrives first is
// a race.
func withContextError(ctx context.Context, err error) error {
	if ended := ctx.Err(); ended != nil && !errors.Is(err, ended) {
		return fmt.Errorf("%w: %w", ended, err)
	}
	return err
}

// freeWindow returns the buffer of the window and empties the window.
func (r *rowReader) freeWindow() {
	r.storage.putBuffer(r.window.buffer)
	r.window = window{}
}

// readAhead starts to read a row, if there is one, none is being read, and not too many readers do so.
func (r *rowReader) readAhead(seq int64) {
	if r.ahead != nil || seq*ChunkBytes >= r.size || r.window.end() >= r.size || !r.storage.readAheads.TryAcquire(1) {
		return
	}
	ahead := make(chan window, 1)
	r.ahead = ahead
	go func() { ahead <- r.readRow(seq) }()
}

// readRow reads a row. It copies the bytes from lib/pq's memory to a pooled buffer: database/sql would
// allocate a new one for each row.
func (r *rowReader) readRow(seq int64) window {
	next := window{start: seq * ChunkBytes, err: ErrTruncated}
	query, args := sqlReadFirst, []any{r.id}
	if seq > 0 {
		query, args = sqlReadChunk, append(args, seq)
	}
	if err := r.storage.rowReads.Acquire(r.ctx, 1); err != nil {
		next.err = err
		return next
	}
	defer r.storage.rowReads.Release(1)
	rows, err := r.storage.db.QueryContext(r.ctx, query, args...)
	if err != nil {
		next.err = err
		return next
	}
	defer rows.Close()
	if rows.Next() {
		var raw sql.RawBytes
		next.err = rows.Scan(&raw)
		next.buffer = r.storage.buffers.Get().(*[]byte)
		next.data = append((*next.buffer)[:0], raw...)
	}
	// Close precedes Err. Until Close, database/sql keeps raw valid for us and holds a lock for that; if
	// the context has ended meanwhile, Err would wait for that lock forever.
	if err := errors.Join(rows.Close(), rows.Err()); err != nil {
		next.err = err
	}
	return next
}

// Seek implements io.Seeker.
func (r *rowReader) Seek(offset int64, whence int) (int64, error) {
	at, err := seek(r.id, r.offset, r.size, offset, whence)
	if err == nil {
		r.offset = at
	}
	return at, err
}

// seek returns the new position of a reader that is at position at of size bytes.
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

// Close implements io.Closer. It does not wait for a row that is being read ahead.
func (r *rowReader) Close() error {
	r.closed = true
	r.freeWindow()
	if ahead := r.ahead; ahead != nil {
		r.ahead = nil
		go func() {
			r.storage.putBuffer((<-ahead).buffer)
			r.storage.readAheads.Release(1)
		}()
	}
	return nil
}
