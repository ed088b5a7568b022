package pendinguploads

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"

	"github.com/molecule-ai/platform/internal/activity"
)

// ChunkBytes is the length of the piece of a file that one row holds. The first piece is
// in pending_uploads.content, the others are rows of pending_upload_chunks. Measured
// with 25 MiB files and 4 writers: 1 MiB rows 245 MB/s, one value a file 186 MB/s.
const ChunkBytes = 1 << 20

// maxLarge is how many uploads longer than a piece are written at once; small ones have the other
// connections to themselves. More write hardly more together, and whoever has one row to write waits
// for them: measured on 2 cores with 32 uploads of 25 MiB, 2 at once bring 231 MB/s and acks at the
// 99th percentile in 31 ms, 4 bring 242 MB/s and 53 ms, 8 bring 254 MB/s and 100 ms.
var maxLarge = int64(min(max(runtime.GOMAXPROCS(0), 2), 4))

const (
	fileColumns = `file_id, filename, mimetype, size_bytes, sha256, created_at, fetched_at, acked_at, expires_at`

	// A file that was acknowledged in time stays readable until the sweep takes it.
	readable = `(acked_at IS NOT NULL OR expires_at > now())`

	sqlInsertFile = `INSERT INTO pending_uploads (workspace_id, filename, mimetype, size_bytes, sha256, content, expires_at) ` +
		`VALUES ($1, $2, $3, $4, $5, $6, now() + $7 * interval '1 microsecond') RETURNING file_id, created_at, expires_at`

	sqlInsertChunk = `INSERT INTO pending_upload_chunks (file_id, seq, data) VALUES ($1, $2, $3)`

	sqlGet = `SELECT ` + fileColumns + ` FROM pending_uploads ` +
		`WHERE file_id = $1 AND workspace_id = $2 AND ` + readable

	sqlMarkFetched = `UPDATE pending_uploads SET fetched_at = now() ` +
		`WHERE file_id = $1 AND workspace_id = $2 AND fetched_at IS NULL AND ` + readable

	sqlAck = `UPDATE pending_uploads SET acked_at = now() ` +
		`WHERE file_id = $1 AND workspace_id = $2 AND acked_at IS NULL AND expires_at > now() RETURNING ` + fileColumns

	sqlList = `SELECT ` + fileColumns + ` FROM pending_uploads ` +
		`WHERE workspace_id = $1 AND ` + readable + ` %s ORDER BY created_at, file_id LIMIT $2`

	sqlListAfter = `AND (created_at, file_id) > ($3, $4) `
)

var sqlFilters = map[Filter]string{
	OnlyUnacked: `AND acked_at IS NULL `,
	OnlyAcked:   `AND acked_at IS NOT NULL `,
}

// list is the statement that lists files; more is a condition, or "". Acknowledged files and others have an index each,
// in the order of the list, so that a page reads no more files than it has.
func list(f Filter, more string) string {
	if f != All {
		return fmt.Sprintf(sqlList, sqlFilters[f]+more)
	}
	return `(` + list(OnlyUnacked, more) + `) UNION ALL (` + list(OnlyAcked, more) + `) ORDER BY created_at, file_id LIMIT $2`
}

// An Inbox announces files: it appends rows to a workspace's inbox as part of tx, which
// the caller commits right after. *activity.Inbox is one.
type Inbox interface {
	Append(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, entries ...activity.Entry) error
}

// Postgres is a Storage that keeps the bytes in the database, beside the rows.
type Postgres struct {
	db       *sql.DB
	staging  *sql.DB
	sessions *sql.DB
	inbox    Inbox
	limits   Limits
	chunks   sync.Pool           // of buffers of ChunkBytes
	aheads   *semaphore.Weighted // of readers
	fetches  *semaphore.Weighted // of rows
	large    *semaphore.Weighted // uploads being written
}

// NewPostgres returns the Storage in a database. Writing bytes goes through staging, whose
// connections should have binary_parameters=yes: without it lib/pq sends them as hex, twice
// the length. Everything else goes through db, whose connections should not have it: with
// it lib/pq reads bytes as hex. How many files are written at once, and so how much memory
// that takes, is bounded by staging's number of connections.
func NewPostgres(db, staging *sql.DB, inbox Inbox, limits Limits) *Postgres {
	p := &Postgres{db: db, staging: staging, sessions: db, inbox: inbox, limits: limits, aheads: semaphore.NewWeighted(maxAhead),
		fetches: semaphore.NewWeighted(maxFetches), large: semaphore.NewWeighted(maxLarge)}
	p.chunks.New = func() any { b := make([]byte, ChunkBytes); return &b }
	return p
}

// WithSessions is for when db and staging lead through a pooler that gives each transaction
// another session of PostgreSQL: what needs a session of its own, and what an upload does beside its
// transaction, then goes through the pool sessions. If the latter went through the pooler, too, uploads
// that hold all of its sessions would wait for one more. Call it before the first use.
func (p *Postgres) WithSessions(sessions *sql.DB) { p.sessions = sessions }

// putChunk takes a buffer back; nil is none.
func (p *Postgres) putChunk(buffer *[]byte) {
	if buffer != nil {
		p.chunks.Put(buffer)
	}
}

// Stage implements Storage.
func (p *Postgres) Stage(ctx context.Context, workspace uuid.UUID, files []NewFile) ([]File, error) {
	staged, _, err := p.StageOnce(ctx, workspace, "", files)
	return staged, err
}

// StageOnce implements Storage.
func (p *Postgres) StageOnce(ctx context.Context, workspace uuid.UUID, key string, files []NewFile) ([]File, bool, error) {
	if err := p.limits.check(files); err != nil {
		return nil, false, err
	}
	if total(files) > atOnceBytes {
		if err := p.large.Acquire(ctx, 1); err != nil {
			return nil, false, fmt.Errorf("pendinguploads: wait to write %d files: %w", len(files), err)
		}
		defer p.large.Release(1)
	}
	tx, replayed, err := p.begin(ctx, workspace, key, files)
	if err != nil || replayed != nil {
		return replayed, replayed != nil, err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit it does nothing
	room, err := p.reserve(ctx, tx, workspace, files)
	if err != nil {
		return nil, false, err
	}
	staged, err := p.stage(ctx, tx, upload{workspace: workspace, key: key, files: files, room: room, write: p.insert})
	if err == nil {
		err = commit(tx, workspace, files)
	}
	if err != nil {
		_ = tx.Rollback() // first: tx may hold the lock of the reservation
		p.release(ctx, room)
		return nil, false, err
	}
	return staged, false, nil
}

// begin begins the transaction of an upload. If the upload was staged before, by its key, there is
// none, but the first answer: it counts also when there would be no room for the files any more.
func (p *Postgres) begin(ctx context.Context, workspace uuid.UUID, key string, files []NewFile) (*sql.Tx, []File, error) {
	tx, err := p.staging.BeginTx(ctx, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("pendinguploads: begin: %w", err)
	}
	if key == "" {
		return tx, nil, nil
	}
	staged, err := p.replay(ctx, tx, workspace, key, files)
	if err == nil && staged != nil {
		err = confirm(ctx, tx, workspace, key)
	}
	if err != nil {
		_ = tx.Rollback()
		return nil, nil, err
	}
	if staged != nil {
		return nil, staged, nil
	}
	return tx, nil, nil
}

func commit(tx *sql.Tx, workspace uuid.UUID, files []NewFile) error {
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("pendinguploads: commit %d files for workspace %s: %w", len(files), workspace, err)
	}
	return nil
}

// An upload is what stage stages.
type upload struct {
	workspace uuid.UUID
	key       string // "": none
	files     []NewFile
	room      uuid.NullUUID

	// write makes the row of the ith file, with its bytes if they are not elsewhere.
	write func(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, i int, f NewFile) (File, error)
}

// stage writes all that makes an upload visible, as part of tx.
func (p *Postgres) stage(ctx context.Context, tx *sql.Tx, u upload) ([]File, error) {
	staged := make([]File, len(u.files))
	entries := make([]activity.Entry, len(u.files))
	for i, f := range u.files {
		file, err := u.write(ctx, tx, u.workspace, i, f)
		if err != nil {
			return nil, fmt.Errorf("pendinguploads: stage %s for workspace %s: %w", f.Name, u.workspace, err)
		}
		staged[i], entries[i] = file, file.announcement()
	}
	if err := useReservation(ctx, tx, u.room); err != nil {
		return nil, err
	}
	if u.key != "" {
		if err := remember(ctx, tx, u.workspace, u.key, u.files, staged); err != nil {
			return nil, err
		}
	}
	// The inbox last: it takes a lock that every writer of the workspace waits for.
	if err := p.inbox.Append(ctx, tx, u.workspace, entries...); err != nil {
		return nil, fmt.Errorf("pendinguploads: announce %d files: %w", len(u.files), err)
	}
	return staged, nil
}

// total is how long files are together.
func total(files []NewFile) (bytes int64) {
	for _, f := range files {
		bytes += f.Size
	}
	return bytes
}

// insert writes one file, a piece at a time.
func (p *Postgres) insert(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, _ int, f NewFile) (File, error) {
	buffer := p.chunks.Get().(*[]byte)
	defer p.chunks.Put(buffer)
	piece := func(left int64) ([]byte, error) {
		b := (*buffer)[:min(left, ChunkBytes)]
		if _, err := io.ReadFull(f.Content, b); err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil, fmt.Errorf("%w: content is shorter than its size of %d", ErrInvalidFile, f.Size)
		} else if err != nil {
			return nil, fmt.Errorf("read content: %w", err)
		}
		return b, nil
	}
	file := File{Workspace: workspace, Name: f.Name, MIMEType: f.MIMEType, Size: f.Size, SHA256: f.SHA256}
	first, err := piece(f.Size)
	if err != nil {
		return File{}, err
	}
	row := tx.QueryRowContext(ctx, sqlInsertFile, workspace, f.Name, f.MIMEType, f.Size, f.SHA256[:], first, p.limits.TTL.Microseconds())
	if err := row.Scan(&file.ID, &file.CreatedAt, &file.ExpiresAt); err != nil {
		return File{}, fmt.Errorf("insert: %w", err)
	}
	for seq := 1; int64(seq)*ChunkBytes < f.Size; seq++ {
		data, err := piece(f.Size - int64(seq)*ChunkBytes)
		if err != nil {
			return File{}, err
		}
		if _, err := tx.ExecContext(ctx, sqlInsertChunk, file.ID, seq, data); err != nil {
			return File{}, fmt.Errorf("insert chunk %d: %w", seq, err)
		}
	}
	switch n, err := io.ReadFull(f.Content, (*buffer)[:1]); {
	case n != 0:
		return File{}, fmt.Errorf("%w: content is longer than its size of %d", ErrInvalidFile, f.Size)
	case err != io.EOF:
		return File{}, fmt.Errorf("read content: %w", err)
	}
	return file, nil
}

// announcement is the inbox row of the file. Its form is fixed: pollers read it.
func (f File) announcement() activity.Entry {
	// A struct of strings and a number cannot fail to marshal.
	body, _ := json.Marshal(struct {
		FileID   uuid.UUID `json:"file_id"`
		Name     string    `json:"name"`
		MIMEType string    `json:"mimeType"`
		Size     int64     `json:"size"`
		URI      string    `json:"uri"`
		SHA256   string    `json:"sha256"`
	}{f.ID, f.Name, f.MIMEType, f.Size, f.URI(), hex.EncodeToString(f.SHA256[:])})
	return activity.Entry{
		Type:        activity.TypeA2AReceive,
		TargetID:    uuid.NullUUID{UUID: f.Workspace, Valid: true},
		Method:      activity.MethodChatUpload,
		Summary:     activity.MethodChatUpload + ": " + f.Name,
		RequestBody: body,
		Status:      activity.StatusOK,
	}
}

// Get implements Storage.
func (p *Postgres) Get(ctx context.Context, workspace, id uuid.UUID) (File, error) {
	f := File{Workspace: workspace}
	if err := p.db.QueryRowContext(ctx, sqlGet, id, workspace).Scan(f.columns()...); err != nil {
		return File{}, fmt.Errorf("pendinguploads: get %s: %w", id, notFound(err))
	}
	return f, nil
}

// MarkFetched implements Storage.
func (p *Postgres) MarkFetched(ctx context.Context, workspace, id uuid.UUID) (bool, error) {
	result, err := p.db.ExecContext(ctx, sqlMarkFetched, id, workspace)
	if err != nil {
		return false, fmt.Errorf("pendinguploads: mark %s fetched: %w", id, err)
	}
	n, _ := result.RowsAffected() // lib/pq always knows it
	return n == 1, nil
}

// Ack implements Storage. The first of several at once is the one whose update found the
// file unacknowledged; times would not tell them apart, for two may be the same.
func (p *Postgres) Ack(ctx context.Context, workspace, id uuid.UUID) (File, bool, error) {
	f := File{Workspace: workspace}
	err := p.db.QueryRowContext(ctx, sqlAck, id, workspace).Scan(f.columns()...)
	if errors.Is(err, sql.ErrNoRows) {
		f, err = p.Get(ctx, workspace, id)
		return f, false, err
	}
	if err != nil {
		return File{}, false, fmt.Errorf("pendinguploads: ack %s: %w", id, err)
	}
	return f, true, nil
}

// List implements Storage.
func (p *Postgres) List(ctx context.Context, workspace uuid.UUID, q ListQuery) ([]File, error) {
	limit := q.Limit
	if limit <= 0 {
		limit = DefaultListLimit
	}
	more, args := "", []any{workspace, min(limit, MaxListLimit)}
	if q.After.Valid {
		after, err := p.Get(ctx, workspace, q.After.UUID)
		if err != nil {
			return nil, fmt.Errorf("pendinguploads: list after: %w", err)
		}
		more, args = sqlListAfter, append(args, after.CreatedAt, after.ID)
	}
	rows, err := p.db.QueryContext(ctx, list(q.Filter, more), args...)
	if err != nil {
		return nil, fmt.Errorf("pendinguploads: list workspace %s: %w", workspace, err)
	}
	defer rows.Close()
	files := []File{}
	for rows.Next() {
		f := File{Workspace: workspace}
		if err := rows.Scan(f.columns()...); err != nil {
			return nil, fmt.Errorf("pendinguploads: list workspace %s: %w", workspace, err)
		}
		files = append(files, f)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("pendinguploads: list workspace %s: %w", workspace, err)
	}
	return files, nil
}

// columns are the places for fileColumns.
func (f *File) columns() []any {
	return []any{&f.ID, &f.Name, &f.MIMEType, &f.Size, (*digest)(&f.SHA256), &f.CreatedAt, &f.FetchedAt, &f.AckedAt, &f.ExpiresAt}
}

// digest scans a SHA-256 of exactly 32 bytes, which the table's constraint guarantees.
type digest [32]byte

// Scan implements sql.Scanner.
func (d *digest) Scan(src any) error {
	b, ok := src.([]byte)
	if !ok || len(b) != len(d) {
		return fmt.Errorf("not a SHA-256: %T", src)
	}
	copy(d[:], b)
	return nil
}

// notFound translates the absence of a row.
func notFound(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}
