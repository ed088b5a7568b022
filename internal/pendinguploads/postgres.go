package pendinguploads

import (
	"context"
	"database/sql"
	"runtime"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"

	"github.com/molecule-ai/platform/internal/activity"
)

// ChunkBytes is the size of the part of a file that one row holds. The first chunk is in
// pending_uploads.content, the others are rows of pending_upload_chunks. Measured with 25 MiB files
// and 4 writers: 245 MB/s in rows of 1 MiB, 186 MB/s with the whole file in one value.
const ChunkBytes = 1 << 20

// maxLargeUploads is how many uploads of more than smallUploadBytes are written at the same time. Small
// ones do not wait for them and find free connections. More writers add little throughput and delay
// everything else: measured on 2 cores with 32 uploads of 25 MiB, 2 writers reach 231 MB/s and a p99 of
// 31 ms for acknowledgements, 4 reach 242 MB/s and 53 ms, 8 reach 254 MB/s and 100 ms.
var maxLargeUploads = int64(min(max(runtime.GOMAXPROCS(0), 2), 4))

// An Inbox appends rows to a workspace's inbox as part of tx, which the caller commits right after.
// *activity.Inbox implements it.
type Inbox interface {
	Append(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, entries ...activity.Entry) error
}

// Postgres is a Storage that keeps the content of files in the database, beside their rows.
type Postgres struct {
	db           *sql.DB
	staging      *sql.DB
	sessions     *sql.DB
	inbox        Inbox
	limits       Limits
	buffers      sync.Pool           // of *[]byte with ChunkBytes
	readAheads   *semaphore.Weighted // readers that load a second row
	rowReads     *semaphore.Weighted // rows being read
	largeUploads *semaphore.Weighted // uploads being written
}

var _ Storage = (*Postgres)(nil)

// NewPostgres returns the Storage in a database.
//
// Content is written through staging, whose connections should have binary_parameters=yes: without
// it lib/pq sends bytea as hex, twice the size. Everything else uses db, whose connections should not
// have it: with it lib/pq reads bytea as hex. The number of staging's connections bounds how many
// files are written at the same time, and so the memory for it.
func NewPostgres(db, staging *sql.DB, inbox Inbox, limits Limits) *Postgres {
	p := &Postgres{
		db: db, staging: staging, sessions: db, inbox: inbox, limits: limits,
		readAheads: semaphore.NewWeighted(maxReadAheads), rowReads: semaphore.NewWeighted(maxRowReads), largeUploads: semaphore.NewWeighted(maxLargeUploads),
	}
	p.buffers.New = func() any { b := make([]byte, ChunkBytes); return &b }
	return p
}

// UseSessionPool sets the pool for statements that need a session of PostgreSQL of their own, and for
// those that an upload runs beside its transaction. It is needed if db and staging connect through a
// pooler in transaction mode. If these statements went through the pooler too, uploads that hold all
// of its sessions would each wait for one more: a deadlock. Call it before the first use.
func (p *Postgres) UseSessionPool(sessions *sql.DB) { p.sessions = sessions }

// putBuffer returns a buffer to the pool; nil is ignored.
func (p *Postgres) putBuffer(buffer *[]byte) {
	if buffer != nil {
		p.buffers.Put(buffer)
	}
}
