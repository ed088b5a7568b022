package pendinguploads

import (
	"context"
	"database/sql"
	"runtime"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/fairshare"
)

// ChunkBytes is the size of the part of a file that one row holds. The first chunk is in
// pending_uploads.content, the others are rows of pending_upload_chunks. Measured with 25 MiB files
// and 4 writers: 245 MB/s in rows of 1 MiB, 186 MB/s with the whole file in one value.
const ChunkBytes = 1 << 20

// maxLargeUploads is how many uploads of more than smallUploadBytes one workspace writes at the same time;
// another workspace can write one more meanwhile. Small ones do not wait for them and find free
// connections. More writers add little throughput and delay everything else: measured on 2 cores with 32
// uploads of 25 MiB, 2 writers reach 231 MB/s and a p99 of 31 ms for acknowledgements, 4 reach 242 MB/s
// and 53 ms, 8 reach 254 MB/s and 100 ms.
var maxLargeUploads = int64(min(max(runtime.GOMAXPROCS(0), 2), 4))

// maxReserving is how many connections may wait for the locks of quotas. The rest of the pool stays free
// for other statements.
const maxReserving = 4

// An Inbox appends rows to a workspace's inbox as part of tx, which the caller commits right after.
// *activity.Inbox implements it.
type Inbox interface {
	Append(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, entries ...activity.Entry) error
}

// Postgres is a Storage that keeps the content of files in the database, beside their rows.
type Postgres struct {
	db         *sql.DB
	staging    *sql.DB
	sessions   *sql.DB
	inbox      Inbox
	limits     Limits
	buffers    sync.Pool           // of *[]byte with ChunkBytes
	readAheads *semaphore.Weighted // readers that load a second row
	rowReads   *semaphore.Weighted // rows being read

	// Shared by workspace: otherwise the uploads of one workspace whose quota or inbox is locked would
	// hold all of them.
	writing      *fairshare.Budget // connections of staging
	reserving    *fairshare.Budget // connections of sessions that reserve quota
	largeUploads *fairshare.Budget // uploads being written
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
		db: db, staging: staging, inbox: inbox, limits: limits,
		readAheads: semaphore.NewWeighted(maxReadAheads), rowReads: semaphore.NewWeighted(maxRowReads),
		writing: fairshare.New(maxConns(staging)), largeUploads: fairshare.New(maxLargeUploads + 1),
	}
	p.UseSessionPool(db)
	p.buffers.New = func() any { b := make([]byte, ChunkBytes); return &b }
	return p
}

// UseSessionPool sets the pool for statements that need a session of PostgreSQL of their own, and for
// those that an upload runs beside its transaction. It is needed if db and staging connect through a
// pooler in transaction mode. If these statements went through the pooler too, uploads that hold all
// of its sessions would each wait for one more: a deadlock. Call it before the first use.
func (p *Postgres) UseSessionPool(sessions *sql.DB) {
	p.sessions, p.reserving = sessions, fairshare.New(min(maxConns(sessions), maxReserving))
}

// maxConns returns the size of a pool.
func maxConns(db *sql.DB) int64 {
	if n := db.Stats().MaxOpenConnections; n > 0 {
		return int64(n)
	}
	return fairshare.Unlimited
}

// putBuffer returns a buffer to the pool; nil is ignored.
func (p *Postgres) putBuffer(buffer *[]byte) {
	if buffer != nil {
		p.buffers.Put(buffer)
	}
}
