// Package pendinguploads stores the files that wait for a workspace which cannot be called.
//
// A workspace in poll mode runs behind NAT, so the platform cannot send it a file when the
// canvas uploads one. The platform stages the file here and announces it with a row in the
// workspace's inbox. The workspace polls its inbox, downloads the file, saves it and
// acknowledges it. The life of a file:
//
//	staged   its bytes and its inbox row are durable; one transaction committed both
//	fetched  the workspace has read it to the end at least once
//	acked    the workspace has saved it and acknowledged it; it no longer counts for the quota
//	expired  its TTL has passed without an acknowledgement; it cannot be read any more
//	swept    its bytes and its row are deleted: after it expired, or a retention after its ack
//
// Fetched is informational. Only an acknowledgement or the TTL ends the life of a file: a
// workspace that crashes between reading and saving fetches the file again.
//
// # Guarantees
//
// Every Storage guarantees the following; package storagetest checks it for each of them.
//
//   - Durability. When Stage returns nil, all files of the upload and one inbox row for each
//     are on disk. When it returns an error, none of them exists. There is one exception: if
//     the connection breaks during the commit, Stage returns an error although the files may
//     exist. They are never there in part. StageOnce makes it safe to send such an upload again.
//
//   - Integrity. A reader returns exactly the bytes that were staged, or an error. It never
//     returns fewer bytes followed by io.EOF.
//
//   - Retention. An unacknowledged file stays readable until its TTL has passed. A file that
//     was acknowledged in time stays readable until it is swept.
//
//   - Isolation. Every call names the workspace. A file of another workspace is ErrNotFound,
//     exactly like one that never existed. No caller can forget the check.
//
//   - Bounded memory. Files are streamed, whatever their size. A slow reader holds neither a
//     transaction nor a connection between two reads.
//
//   - Quota. The unacknowledged files of a workspace never exceed its quota, however many
//     uploads arrive at the same time on however many replicas.
//
// # Use
//
// An upload and its delivery, without the handling of errors:
//
//	staged, replayed, err := storage.StageOnce(ctx, workspace, key, batch.Files())
//	// The workspace's poll now returns an inbox row with staged[0].ID.
//	f, content, err := storage.Open(ctx, workspace, id)
//	_, err = io.Copy(response, content)
//	first, err := storage.MarkFetched(ctx, workspace, f.ID)
//	// The workspace saves the file, compares f.SHA256 and acknowledges it.
//	f, first, err = storage.Ack(ctx, workspace, id)
//
// # Implementations
//
// Postgres keeps everything in the database: the first MiB of a file in the row of the file,
// the rest in rows of 1 MiB. ObjectStorage keeps rows, inbox and small files in the database,
// and the bytes of larger files in an object store, which is S3 or a folder. ObjectStorage
// also reads what Postgres has staged, so an object store can be added at any time; to remove
// one, its files are first moved back into the database (platform storage migrate).
//
// A new implementation needs three things. It implements Storage. Its test calls
// storagetest.Run, which checks every guarantee above. Its staging keeps the order of the
// existing ones, because each step has a cost that others wait for or a crash that it must
// survive:
//
//  1. Validate the descriptions, then find the key or reserve the quota. Nothing is written
//     for an upload that is refused.
//  2. Write the bytes. If they are not in the database, first commit a row for each object,
//     so that the sweep can delete an object whose upload never committed.
//  3. In one transaction write the rows of the files, use the reservation and store the key.
//     Append the inbox rows last: they take a lock that every writer of the workspace waits for.
//  4. Commit. If the answer to the commit is lost, keep the bytes: the files may exist.
//
// The HTTP handlers need no change: they know only Storage.
//
// # What is elsewhere
//
// The package knows no HTTP. Package spool reads an upload from the network, counts and
// hashes it, and makes the NewFile values that Stage takes. Package uploadname sanitizes
// names and types. Package handlers maps the errors below to status codes. The sweep loop is
// package sweeper; Sweep here deletes one batch.
package pendinguploads

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/google/uuid"
)

// The errors of a Storage. They are returned wrapped, with the operation and the id of the
// file; compare with errors.Is. Every other error is a failure of the database, of the object
// store or of the caller's context, and the call may be repeated.
var (
	// ErrNotFound reports that the workspace has no such file: it never existed, belongs to
	// another workspace, has expired or was swept. Repeating the call does not help.
	ErrNotFound = errors.New("pendinguploads: no such file")

	// ErrTooLarge reports a file of more than Limits.MaxFileBytes.
	ErrTooLarge = errors.New("pendinguploads: file too large")

	// ErrBatchTooLarge reports an upload whose files have more than Limits.MaxBatchBytes
	// together.
	ErrBatchTooLarge = errors.New("pendinguploads: files too large together")

	// ErrInvalidFile reports a NewFile that no workspace would accept: its name is not
	// sanitized, its type is not a plain type/subtype, or its content is shorter or longer
	// than Size. It is a bug of the caller: package spool makes no such NewFile.
	ErrInvalidFile = errors.New("pendinguploads: invalid file")

	// ErrQuota reports that the files would exceed the workspace's quota. There is space again
	// when files are acknowledged or expire. It is returned as a *QuotaError, which has the
	// figures.
	ErrQuota = errors.New("pendinguploads: quota exceeded")

	// ErrKeyReused reports that the idempotency key was used for an upload with other names,
	// types or contents. Repeating the call does not help; the caller needs a new key.
	ErrKeyReused = errors.New("pendinguploads: idempotency key used for other files")

	// ErrKeyInUse reports that another call with the same idempotency key is still running.
	// Repeat the call later.
	ErrKeyInUse = errors.New("pendinguploads: idempotency key in use")

	// ErrTruncated is returned by Read when the file was swept after it was opened. The bytes
	// that were read before are correct, but they are not all.
	ErrTruncated = errors.New("pendinguploads: file was deleted while it was read")
)

// Storage stores the files that wait for their workspaces. Implementations are safe for
// concurrent use, in one process and across replicas that share the database.
//
// Times are those of the database's clock, so replicas agree on what has expired. ctx cancels
// every call; the error then wraps that of the context, and never ErrNotFound.
type Storage interface {
	// Stage stores the files of one upload and appends one inbox row for each, in the order
	// of the slice, all or none. The returned files have the same order. Stage reads each
	// Content once, to its end, and closes none. An empty slice stages nothing and succeeds.
	//
	// It returns ErrInvalidFile, ErrTooLarge or ErrBatchTooLarge before it writes anything
	// if the description of a file is not acceptable, and ErrQuota before it writes any
	// bytes if the quota does not allow the files. If a Content fails or has another length
	// than Size, nothing is staged and the error wraps that of the Content or ErrInvalidFile.
	Stage(ctx context.Context, workspace uuid.UUID, files []NewFile) ([]File, error)

	// StageOnce is Stage for an upload that its client may send again. The key, which is
	// scoped to the workspace, becomes durable in the same commit as the files and is kept
	// for KeyTTL. A later call with the same key and the same names, types and contents
	// stages nothing: it returns the files of the first call, as they were then, and replayed
	// is true, even if they have expired or were swept meanwhile. A replay needs no quota.
	//
	// It returns the errors of Stage, ErrKeyReused if the key belongs to other files, and
	// ErrKeyInUse, without waiting, while a call with the same key is running. A call that
	// fails leaves the key free. With an empty key it is Stage.
	StageOnce(ctx context.Context, workspace uuid.UUID, key string, files []NewFile) (staged []File, replayed bool, err error)

	// Open returns a file and a reader of its content. The reader loads the bytes as they are
	// asked for, and ctx cancels its reads too, so it must live as long as the reader. The
	// reader supports seeking and is for one goroutine; the caller closes it.
	//
	// Open returns ErrNotFound. Reads return ErrTruncated if the file is swept meanwhile,
	// and another error if its bytes cannot be read now; a later Open may then succeed.
	Open(ctx context.Context, workspace, id uuid.UUID) (File, io.ReadSeekCloser, error)

	// MarkFetched records that the workspace has read the file to its end, and reports
	// whether this call was the first to do so. A file that does not exist, or no longer
	// does, is not an error: first is false.
	MarkFetched(ctx context.Context, workspace, id uuid.UUID) (first bool, err error)

	// Ack marks the file delivered, returns it, and reports whether this call was the first
	// to do so. Acknowledging again succeeds and changes nothing. Ack returns ErrNotFound if
	// the file has expired unacknowledged or was swept.
	Ack(ctx context.Context, workspace, id uuid.UUID) (f File, first bool, err error)

	// Get returns a file without its content. It returns ErrNotFound, also for a file that has
	// expired but was not swept yet.
	Get(ctx context.Context, workspace, id uuid.UUID) (File, error)

	// List returns files of the workspace that can be read, oldest first, at most q.Limit of
	// them. The slice is empty, not nil, if there are none. It returns ErrNotFound if the
	// file q.After cannot be read any more; the caller then starts again without it.
	List(ctx context.Context, workspace uuid.UUID, q ListQuery) ([]File, error)

	// Sweep deletes one batch of files of all workspaces, with their bytes: those acknowledged
	// longer ago than retention, and those that have expired. It also deletes expired keys,
	// quota reservations and unreferenced objects. It skips rows that another replica has
	// locked. Call it again while Swept.More is set. After an error, the returned Swept
	// counts what was deleted before.
	Sweep(ctx context.Context, retention time.Duration) (Swept, error)

	// Sweepable counts the files that Sweep would delete now, in all batches. It deletes
	// nothing and never sets More. It reads every such row, so it is for an operator's dry
	// run, not for a metric.
	Sweepable(ctx context.Context, retention time.Duration) (Swept, error)

	// Reclaim makes the disk space of swept files available to new ones, where the backend
	// does not do that soon enough by itself. Call it after a large sweep, in the background:
	// it may take minutes. If another replica is reclaiming, it returns nil at once.
	Reclaim(ctx context.Context) error
}

// Swept counts the files that a sweep has deleted. Keys, reservations and objects are deleted
// too, but not counted: no workspace could see them.
type Swept struct {
	Acked, Expired           int   // files
	AckedBytes, ExpiredBytes int64 // of those files
	More                     bool  // the batch was full, so there may be more to delete
}

// KeyTTL is how long the idempotency key of StageOnce is kept, from the commit of its upload. A
// client that sends an upload again after that has it staged twice.
const KeyTTL = 24 * time.Hour

// QuotaError is an ErrQuota with the quota that the refused upload would have exceeded.
type QuotaError struct {
	What        string // "bytes" or "files"
	Used, Limit int64  // Used counts unacknowledged files and running uploads, not the refused one
}

// NewFile describes a file to stage. The Storage trusts SHA256: it announces it to the workspace
// and keeps it, but does not compute it again. Package spool makes them from an upload, and makes sure
// that Size and SHA256 are those of Content. A Content that is also an io.ReaderAt and an
// io.Seeker with a Size method is read in place, so that an object store can retry a request.
type NewFile struct {
	Name     string    // as uploadname.SanitizeFilename returns it
	MIMEType string    // as uploadname.CleanMIMEType returns it
	Size     int64     // bytes
	SHA256   [32]byte  // of the content
	Content  io.Reader // exactly Size bytes
}

// File is a staged file, without its content. Its name, type, size and digest never change; its
// times say what has happened to it. The kept answers of StageOnce are File values as JSON, so
// renaming a field breaks replays of uploads from before the change.
type File struct {
	ID        uuid.UUID
	Workspace uuid.UUID
	Name      string
	MIMEType  string
	Size      int64 // bytes
	SHA256    [32]byte
	CreatedAt time.Time
	FetchedAt *time.Time // nil: not fetched
	AckedAt   *time.Time // nil: not acknowledged
	ExpiresAt time.Time  // from then on it cannot be read, unless it is acknowledged
}

// State is the state of a file that can be read. Expired and swept files have none: they are
// ErrNotFound.
type State string

// The states of a file that can be read. Acked includes files that were never marked fetched.
const (
	Staged  State = "staged"
	Fetched State = "fetched"
	Acked   State = "acked"
)

// Filter selects files by whether they are acknowledged.
type Filter int

// The filters of a ListQuery. The zero value lists what the workspace still has to fetch.
const (
	OnlyUnacked Filter = iota
	OnlyAcked
	All
)

// The number of files that List returns at most.
const (
	DefaultListLimit = 100
	MaxListLimit     = 500
)

// ListQuery selects a page of a workspace's files. To read the next page, set After to the
// last file of the page before.
type ListQuery struct {
	Filter Filter
	After  uuid.NullUUID // only files staged after this one
	Limit  int           // 0 means DefaultListLimit; higher values than MaxListLimit mean MaxListLimit
}

// Limits bound what a Storage accepts and for how long it keeps it. They are settings of the
// platform and apply to every workspace alike. Lowering a limit affects new uploads only: files
// that are staged keep their size and their time of expiry.
type Limits struct {
	MaxFileBytes  int64         // maximum size of one file, in bytes
	MaxBatchBytes int64         // maximum size of the files of one upload together, in bytes
	TTL           time.Duration // time from staging to expiry of an unacknowledged file
	QuotaBytes    int64         // maximum size of a workspace's unacknowledged files together; 0: unlimited
	QuotaFiles    int64         // maximum number of a workspace's unacknowledged files; 0: unlimited
}
