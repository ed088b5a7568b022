// Package objectstore keeps objects, named by a key, in a store that a URL names: a bucket of S3 or of
// what speaks like it, of Google Cloud Storage or Azure, or a folder.
//
// It promises that an object is durable when Write returns nil, in a folder too, where it syncs
// the file and its folder; that an object is there in whole or not at all; and that memory is bounded
// whatever the size of an object. A missing object is fs.ErrNotExist everywhere. It does not know
// what objects are for, and keeps no list of them: that is who calls it.
//
// Credentials come from the environment, as each cloud's own tools take them, never from the URL.
package objectstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/azureblob" // azblob://
	"gocloud.dev/blob/fileblob"
	_ "gocloud.dev/blob/gcsblob" // gs://
	"gocloud.dev/gcerrors"
)

// bufferBytes is what a driver may hold of an object that it cannot read twice, times two.
const bufferBytes = 5 << 20

// A Store keeps objects. It is safe for concurrent use.
type Store struct {
	bucket *blob.Bucket
	prefix string   // of all names
	dir    string   // "": it is no folder
	synced sync.Map // folders whose names are known to be on the disk
	flush  func(path string) error
	s3     *s3Bucket
}

// Open opens the store that rawURL names. All objects are below namespace, and nothing else there is
// looked at. It may succeed for a store that is not there or not allowed; Probe tells.
func Open(ctx context.Context, rawURL string, namespace uuid.UUID) (*Store, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, errors.New("objects: the URL of the store cannot be read")
	}
	q := u.Query()
	// Not folders: an S3 server on a file system makes them of slashes, and removes them when they are
	// empty, from under a writer too.
	s := &Store{prefix: q.Get("prefix") + hex.EncodeToString(namespace[:]) + "-", flush: flush}
	q.Del("prefix")
	switch u.Scheme {
	case "file":
		s.prefix = hex.EncodeToString(namespace[:]) + "/"
		s.dir = filepath.FromSlash(u.Path)
		// No sidecar files: who reads an object knows what it is. Temporary files beside it, so
		// that a rename is all it takes.
		s.bucket, err = fileblob.OpenBucket(s.dir, &fileblob.Options{
			CreateDir: true, NoTempDir: true, Metadata: fileblob.MetadataDontWrite, DirFileMode: 0o700,
		})
	case "s3":
		s.s3, s.bucket, err = openS3(ctx, u, q)
	default:
		u.RawQuery = q.Encode()
		s.bucket, err = blob.OpenBucket(ctx, u.String())
	}
	if err != nil {
		return nil, fmt.Errorf("objects: open the store: %w", err)
	}
	return s, nil
}

// Close gives back what the store holds.
func (s *Store) Close() error { return s.bucket.Close() }

// objectName spreads objects over folders, if it is one: file systems do not like many in one.
func (s *Store) objectName(key uuid.UUID) string {
	name := hex.EncodeToString(key[:])
	if s.dir != "" {
		name = name[:2] + "/" + name
	}
	return s.prefix + name
}

// Write makes an object of size bytes of content. It is durable then. After an error there may be
// a part of it that nobody can read, or even all: delete it. Content that is an io.ReaderAt and an
// io.Seeker is not copied to memory on the way to S3.
func (s *Store) Write(ctx context.Context, key uuid.UUID, size int64, content io.Reader) error {
	name := s.objectName(key)
	var err error
	if seekable, ok := content.(readerAtSeeker); ok && s.s3 != nil {
		err = s.s3.put(ctx, name, size, seekable)
	} else {
		err = s.bucket.Upload(ctx, name, content, &blob.WriterOptions{
			BufferSize: bufferBytes, MaxConcurrency: 1,
			ContentType: contentType, ContentDisposition: contentDisposition, CacheControl: cacheControl,
		})
	}
	if err == nil && s.dir != "" {
		err = s.sync(name)
	}
	if err != nil {
		return fmt.Errorf("objects: write %s: %w", key, translate(err))
	}
	return nil
}

// What a browser makes of an object that it is sent to: a download, and nothing that stays.
const (
	contentType        = "application/octet-stream"
	contentDisposition = "attachment"
	cacheControl       = "private, no-store"
)

// Read reads an object from offset on to its end, and tells how long all of it is.
func (s *Store) Read(ctx context.Context, key uuid.UUID, offset int64) (io.ReadCloser, int64, error) {
	r, err := s.bucket.NewRangeReader(ctx, s.objectName(key), offset, -1, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("objects: read %s: %w", key, translate(err))
	}
	return r, r.Size(), nil
}

// Size tells how long an object is.
func (s *Store) Size(ctx context.Context, key uuid.UUID) (int64, error) {
	a, err := s.bucket.Attributes(ctx, s.objectName(key))
	if err != nil {
		return 0, fmt.Errorf("objects: look at %s: %w", key, translate(err))
	}
	return a.Size, nil
}

// Delete deletes an object. One that is not there is deleted already.
func (s *Store) Delete(ctx context.Context, key uuid.UUID) error {
	return s.Remove(ctx, s.objectName(key))
}

// Remove is Delete for what List has found, by its name.
func (s *Store) Remove(ctx context.Context, name string) error {
	err := translate(s.bucket.Delete(ctx, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("objects: delete %s: %w", name, err)
	}
	return nil
}

// SignedURL returns a URL from which anybody can read the object for a while, "" if the store has none.
func (s *Store) SignedURL(ctx context.Context, key uuid.UUID, validFor time.Duration) (string, error) {
	signed, err := s.bucket.SignedURL(ctx, s.objectName(key), &blob.SignedURLOptions{Expiry: validFor, Method: http.MethodGet})
	if gcerrors.Code(err) == gcerrors.Unimplemented {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("objects: sign a URL for %s: %w", key, err)
	}
	return signed, nil
}

// Probe writes an object and deletes it. The error is for who configured the store.
func (s *Store) Probe(ctx context.Context) error {
	key, content := uuid.New(), "probe"
	if err := s.Write(ctx, key, int64(len(content)), strings.NewReader(content)); err != nil {
		return err
	}
	return s.Delete(ctx, key)
}

// An Object is what List finds.
type Object struct {
	Name     string
	Key      uuid.UUID // Nil: it has no name that this package gives
	Partial  bool      // what a write left that was cut short
	Size     int64
	Modified time.Time
}

// List calls do with everything below the namespace, until it returns an error.
func (s *Store) List(ctx context.Context, do func(Object) error) error {
	objects := s.bucket.List(&blob.ListOptions{Prefix: s.prefix})
	for {
		o, err := objects.Next(ctx)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("objects: list: %w", translate(err))
		}
		found := Object{Name: o.Key, Size: o.Size, Modified: o.ModTime}
		found.Key, found.Partial = s.parse(o.Key)
		if err := do(found); err != nil {
			return err
		}
	}
}

// parse returns the key in a name.
func (s *Store) parse(name string) (key uuid.UUID, partial bool) {
	base := strings.TrimPrefix(name, s.prefix)
	base = base[strings.LastIndexByte(base, '/')+1:]
	if hexadecimal, rest, cut := strings.Cut(base, "."); cut && strings.HasSuffix(rest, ".tmp") {
		base, partial = hexadecimal, true
	}
	key, err := uuid.Parse(base)
	if err != nil || s.objectName(key) != name && !partial {
		return uuid.Nil, false
	}
	return key, partial
}

// translate makes a missing object an fs.ErrNotExist; a missing bucket is not one.
func translate(err error) error {
	if gcerrors.Code(err) == gcerrors.NotFound && !noSuchBucket(err) {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}
