// Package pendinguploads keeps the files that wait for a poll-mode workspace.
//
// A workspace that nobody can call cannot be handed a file when the canvas uploads it.
// So the platform stages it here, announces it in the workspace's inbox, and serves it
// when the workspace's poller comes. The life of a file:
//
//	staged   its bytes and its inbox row are on disk, committed together
//	fetched  it has been read to the end once
//	acked    the workspace has it on its own disk and says so
//	expired  its time is over without an ack; it can no longer be read
//	swept    it is deleted: some time after it was acked, or when it has expired
//
// What every Storage promises, and storagetest checks:
//
//   - Stage is all or nothing: when it returns nil, every file of the batch and an inbox
//     row for each are durable; otherwise there is no trace of any. (Should the connection
//     break while it commits, nobody can tell it which of the two it was: then it returns an
//     error. Never are there some.)
//
//   - What Open reads is byte for byte what was staged, or an error; never less with a
//     clean end of file.
//
//   - A file is kept until it is acknowledged or its time is over.
//
//   - Every call names the workspace. A file of another workspace is ErrNotFound, exactly
//     as a file that never was; no caller can forget the check.
//
//   - Memory is bounded: a file is a stream, whatever its size, and a slow reader holds
//     neither a transaction nor a connection.
//
//   - A workspace has at most its quota staged and unacknowledged, however many uploads
//     arrive at once on however many replicas.
//
// The package knows no HTTP, and it does not sweep by itself.
package pendinguploads

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
)

// The errors of a Storage. They are returned wrapped; test for them with errors.Is.
var (
	// ErrNotFound: the workspace has no such file, or it has expired, or has been swept.
	ErrNotFound = errors.New("pendinguploads: no such file")

	// ErrTooLarge: the file is longer than MaxFileBytes allows.
	ErrTooLarge = errors.New("pendinguploads: file too large")

	// ErrBatchTooLarge: the files of one upload are together longer than MaxBatchBytes.
	ErrBatchTooLarge = errors.New("pendinguploads: files too large together")

	// ErrInvalidFile: the description of a file to stage is not one a workspace would
	// accept: its name is not sanitized, its type is not a plain type/subtype, or its content
	// has another length than it says.
	ErrInvalidFile = errors.New("pendinguploads: invalid file")

	// ErrQuota: the workspace has no room for the files until it acknowledges some, or some
	// expire. It comes as a *QuotaError.
	ErrQuota = errors.New("pendinguploads: quota used up")

	// ErrKeyReused: the key was used for other files.
	ErrKeyReused = errors.New("pendinguploads: key used for other files")

	// ErrKeyInUse: the upload that has this key is still being staged.
	ErrKeyInUse = errors.New("pendinguploads: key in use")

	// ErrTruncated: the rest of a file vanished while it was being read, because it was
	// swept. What was read up to here is right, but it is not all.
	ErrTruncated = errors.New("pendinguploads: file vanished while it was read")
)

// Storage keeps staged files. Implementations are safe for concurrent use, by any number
// of replicas.
type Storage interface {
	// Stage stores the files of one upload and announces each with an inbox row, in their
	// order, all or none. The answer has the files in the same order. It reads each Content
	// once, to its end, and closes nothing.
	//
	// ErrTooLarge, ErrBatchTooLarge or ErrInvalidFile if a file is not as it must be; nothing
	// is staged then. An error of a Content comes back wrapped.
	// ErrQuota, before any byte is written, if the workspace has no room.
	Stage(ctx context.Context, workspace uuid.UUID, files []NewFile) ([]File, error)

	// StageOnce is Stage for an upload that may be sent again: the workspace remembers the
	// key for KeyTTL, from the same moment on that the files are durable. The same key with the
	// same names, types and contents stages nothing and returns what the first call returned,
	// with replayed set, whatever has become of the files since. ErrKeyReused if it comes with
	// others; ErrKeyInUse while the first call is still at it. A call that fails leaves the key
	// free. An empty key is none.
	StageOnce(ctx context.Context, workspace uuid.UUID, key string, files []NewFile) (staged []File, replayed bool, err error)

	// Open returns a file for reading. The reader fetches as it goes; close it when done. ctx
	// governs the reads too. ErrNotFound. Reads return ErrTruncated if the file is swept
	// meanwhile.
	Open(ctx context.Context, workspace, id uuid.UUID) (File, io.ReadSeekCloser, error)

	// MarkFetched notes that the workspace has read the file to the end, and reports
	// whether this call was the first to do so. If there is no such file, there is nothing
	// to note: false and no error.
	MarkFetched(ctx context.Context, workspace, id uuid.UUID) (first bool, err error)

	// Ack marks the file delivered, returns it, and reports whether this call was the first
	// to do so. Acknowledging again succeeds and changes nothing. ErrNotFound, also if a sweep
	// is quicker.
	Ack(ctx context.Context, workspace, id uuid.UUID) (f File, first bool, err error)

	// Get returns what is known of a file without its bytes. ErrNotFound.
	Get(ctx context.Context, workspace, id uuid.UUID) (File, error)

	// List returns the workspace's files that can still be read, oldest first, never nil.
	// ErrNotFound if the file q.After is not among them any more.
	List(ctx context.Context, workspace uuid.UUID, q ListQuery) ([]File, error)

	// Sweep deletes one batch of what is over: files acknowledged longer ago than retention,
	// and files that have expired, of all workspaces; and what else has had its time. It takes
	// only what no other replica is deleting. More is there if the answer says so. A reader in
	// the middle of a file gets ErrTruncated.
	Sweep(ctx context.Context, retention time.Duration) (Swept, error)

	// Sweepable tells what Sweep would delete now, all batches together.
	Sweepable(ctx context.Context, retention time.Duration) (Swept, error)

	// Reclaim gives the room of what was swept to new files, if that does not happen by itself
	// soon enough. It is for who has swept a lot; it may take minutes, and nobody waits for it.
	Reclaim(ctx context.Context) error
}

// Swept is what a sweep deleted.
type Swept struct {
	Acked, Expired           int   // files
	AckedBytes, ExpiredBytes int64 // of the files
	More                     bool  // the batch was full
}

// KeyTTL is how long a key of StageOnce is remembered.
const KeyTTL = 24 * time.Hour

// A QuotaError says which quota is used up. It is an ErrQuota.
type QuotaError struct {
	What        string // "bytes" or "files"
	Used, Limit int64  // staged, unacknowledged and being staged, without the refused upload
}

// Error implements error.
func (e *QuotaError) Error() string {
	return fmt.Sprintf("pendinguploads: quota of %s used up: %d of %d", e.What, e.Used, e.Limit)
}

// Unwrap makes it an ErrQuota.
func (e *QuotaError) Unwrap() error { return ErrQuota }

// NewFile is a file to stage. A Batch makes them, and sees to it that Size and SHA256
// are those of Content.
type NewFile struct {
	Name     string    // as uploadname.SanitizeFilename returns it
	MIMEType string    // as uploadname.CleanMIMEType returns it
	Size     int64     // bytes
	SHA256   [32]byte  // of the content
	Content  io.Reader // exactly Size bytes
}

// File is a staged file.
type File struct {
	ID        uuid.UUID
	Workspace uuid.UUID
	Name      string
	MIMEType  string
	Size      int64
	SHA256    [32]byte
	CreatedAt time.Time
	FetchedAt *time.Time // nil: not yet
	AckedAt   *time.Time // nil: not yet
	ExpiresAt time.Time  // unacked, it cannot be read from then on
}

// URI is how messages refer to the file until its workspace has it.
func (f File) URI() string {
	return "platform-pending:" + f.Workspace.String() + "/" + f.ID.String()
}

// State is where in its life a file is.
type State string

// The states of a file that can be read.
const (
	Staged  State = "staged"
	Fetched State = "fetched"
	Acked   State = "acked"
)

// State returns the state of the file.
func (f File) State() State {
	switch {
	case f.AckedAt != nil:
		return Acked
	case f.FetchedAt != nil:
		return Fetched
	default:
		return Staged
	}
}

// Filter selects files by whether they are acknowledged.
type Filter int

// The filters of a ListQuery.
const (
	OnlyUnacked Filter = iota
	OnlyAcked
	All
)

// Limits of a list.
const (
	DefaultListLimit = 100
	MaxListLimit     = 500
)

// ListQuery selects files of a workspace.
type ListQuery struct {
	Filter Filter
	After  uuid.NullUUID // only files after this one
	Limit  int           // 0 is DefaultListLimit; more than MaxListLimit is MaxListLimit
}

// Limits bound what a Storage accepts and how long it keeps it.
type Limits struct {
	MaxFileBytes  int64         // the longest file, in bytes
	MaxBatchBytes int64         // the files of one upload together, in bytes
	TTL           time.Duration // how long an unacknowledged file is kept
	QuotaBytes    int64         // a workspace's unacknowledged files together; 0: no quota
	QuotaFiles    int64         // how many they may be; 0: no quota
}
