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

// ChunkBytes is the length of the piece of a file that one row holds. The first piece is
// in pending_uploads.content, the others are rows of pending_upload_chunks. Measured
// with 25 MiB files and 4 writers: 1 MiB rows 245 MB/s, one value a file 186 MB/s.
const ChunkBytes = 1 << 20

// maxLarge is how many uploads longer than a piece are written at once; small ones have the other
// connections to themselves. More write hardly more together, and whoever has one row to write waits
// for them: measured on 2 cores with 32 uploads of 25 MiB, 2 at once bring 231 MB/s and acks at the
// 99th percentile in 31 ms, 4 bring 242 MB/s and 53 ms, 8 bring 254 MB/s and 100 ms.
//
// That is what one workspace may write; another can write one more meanwhile.
var maxLarge = int64(min(max(runtime.GOMAXPROCS(0), 2), 4))

// maxReserving is how many connections may wait for the locks of quotas. The pool has others for everything else.
const maxReserving = 4

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

	// What uploads wait for is shared out by workspace: otherwise those of one whose quota or inbox is locked would
	// hold it all.
	writing   *fairshare.Budget // connections of staging
	reserving *fairshare.Budget // connections of sessions that take room
	large     *fairshare.Budget // uploads longer than a piece that are written
}

// NewPostgres returns the Storage in a database. Writing bytes goes through staging, whose
// connections should have binary_parameters=yes: without it lib/pq sends them as hex, twice
// the length. Everything else goes through db, whose connections should not have it: with
// it lib/pq reads bytes as hex. How many files are written at once, and so how much memory
// that takes, is bounded by staging's number of connections.
func NewPostgres(db, staging *sql.DB, inbox Inbox, limits Limits) *Postgres {
	p := &Postgres{db: db, staging: staging, inbox: inbox, limits: limits, aheads: semaphore.NewWeighted(maxAhead),
		fetches: semaphore.NewWeighted(maxFetches), writing: fairshare.New(maxConns(staging)), large: fairshare.New(maxLarge + 1)}
	p.UseSessionPool(db)
	p.chunks.New = func() any { b := make([]byte, ChunkBytes); return &b }
	return p
}

// UseSessionPool is for when db and staging lead through a pooler that gives each transaction
// another session of PostgreSQL: what needs a session of its own, and what an upload does beside its
// transaction, then goes through the pool sessions. If the latter went through the pooler, too, uploads
// that hold all of its sessions would wait for one more. Call it before the first use.
func (p *Postgres) UseSessionPool(sessions *sql.DB) {
	p.sessions, p.reserving = sessions, fairshare.New(min(maxConns(sessions), maxReserving))
}

// maxConns is the size of a pool.
func maxConns(db *sql.DB) int64 {
	if n := db.Stats().MaxOpenConnections; n > 0 {
		return int64(n)
	}
	return fairshare.Unlimited
}

// putChunk takes a buffer back; nil is none.
func (p *Postgres) putChunk(buffer *[]byte) {
	if buffer != nil {
		p.chunks.Put(buffer)
	}
}
