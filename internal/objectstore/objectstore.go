// Package objectstore keeps objects, named by a key, in a store that a URL names: a bucket that speaks S3
// (Amazon, MinIO, Ceph, Google Cloud Storage with HMAC keys, ...) or a folder.
//
// It promises that an object is durable when Write returns nil, in a folder too; that an object is there
// in whole or not at all; and that memory is bounded whatever the size of an object. A missing object is
// fs.ErrNotExist everywhere. It does not know what objects are for, and keeps no list of them: the caller does.
//
// Credentials come from the environment, as Amazon's own tools take them, never from the URL.
package objectstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
)

// A Store keeps objects. It is safe for concurrent use.
type Store struct {
	backend backend
	prefix  string // of all names
	spread  bool   // over folders: file systems are slow with many files in one
}

// A backend keeps objects by name. A missing object is fs.ErrNotExist; remove may also succeed then.
type backend interface {
	write(ctx context.Context, name string, size int64, content io.Reader) error
	// read returns the bytes from offset on, and the size of the whole object.
	read(ctx context.Context, name string, offset int64) (io.ReadCloser, int64, error)
	size(ctx context.Context, name string) (int64, error)
	remove(ctx context.Context, name string) error
	// signedURL returns "" if the store has no such URLs.
	signedURL(ctx context.Context, name string, validFor time.Duration) (string, error)
	// list calls do with Name, Size and Modified of everything whose name starts with prefix. It returns
	// errors of do as they are, as unfinished does.
	list(ctx context.Context, prefix string, do func(Object) error) error
	unfinished(ctx context.Context, prefix string, before time.Time, do func(name string, abort func() error) error) error
	// explain returns what an operator can do about an error of a probe.
	explain(ctx context.Context, err error) string
}

// Open opens the store that rawURL names. All objects are below namespace, and nothing else there is
// touched. Open may succeed for a bucket that is missing or forbidden; Probe finds out.
func Open(ctx context.Context, rawURL string, namespace uuid.UUID) (*Store, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, errors.New("objectstore: the URL of the store cannot be read")
	}
	q := u.Query()
	// Not folders in a bucket: an S3 server on a file system makes them of slashes, and removes them when
	// they are empty, also while another object is being written into them.
	s := &Store{prefix: q.Get("prefix") + hex.EncodeToString(namespace[:]) + "-"}
	q.Del("prefix")
	switch u.Scheme {
	case "file":
		s.prefix, s.spread = hex.EncodeToString(namespace[:])+"/", true
		s.backend, err = openFolder(u.Path)
	case "s3":
		s.backend, err = openS3(ctx, u.Host, q)
	default:
		err = fmt.Errorf("%s:// is not supported; use s3:// or file://", u.Scheme)
	}
	if err != nil {
		return nil, fmt.Errorf("objectstore: open the store: %w", err)
	}
	return s, nil
}

// Close closes the store.
func (s *Store) Close() error { return nil }

func (s *Store) objectName(key uuid.UUID) string {
	name := hex.EncodeToString(key[:])
	if s.spread {
		name = name[:2] + "/" + name
	}
	return s.prefix + name
}

// Write makes an object of size bytes of content, which must be as long as that. The object is durable when
// Write returns nil. After an error there may be an unreadable part of it, or even all: delete it. Content
// that is an io.ReaderAt and an io.Seeker is not copied to memory on the way to S3; of other content at most
// one part is in memory.
func (s *Store) Write(ctx context.Context, key uuid.UUID, size int64, content io.Reader) error {
	if err := s.backend.write(ctx, s.objectName(key), size, content); err != nil {
		return fmt.Errorf("objectstore: write %s: %w", key, err)
	}
	return nil
}

// Read reads an object from offset on to its end, and returns the size of the whole object.
func (s *Store) Read(ctx context.Context, key uuid.UUID, offset int64) (io.ReadCloser, int64, error) {
	r, size, err := s.backend.read(ctx, s.objectName(key), offset)
	if err != nil {
		return nil, 0, fmt.Errorf("objectstore: read %s: %w", key, err)
	}
	return r, size, nil
}

// Size returns the size of an object.
func (s *Store) Size(ctx context.Context, key uuid.UUID) (int64, error) {
	size, err := s.backend.size(ctx, s.objectName(key))
	if err != nil {
		return 0, fmt.Errorf("objectstore: size of %s: %w", key, err)
	}
	return size, nil
}

// Delete deletes an object, with one request to the store. Deleting a missing one succeeds.
func (s *Store) Delete(ctx context.Context, key uuid.UUID) error {
	return s.Remove(ctx, s.objectName(key))
}

// Remove is Delete for what List has found, by its name.
func (s *Store) Remove(ctx context.Context, name string) error {
	if err := s.backend.remove(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("objectstore: delete %s: %w", name, err)
	}
	return nil
}

// SignedURL returns a URL from which anybody can read the object for a while, "" if the store has none.
func (s *Store) SignedURL(ctx context.Context, key uuid.UUID, validFor time.Duration) (string, error) {
	signed, err := s.backend.signedURL(ctx, s.objectName(key), validFor)
	if err != nil {
		return "", fmt.Errorf("objectstore: sign a URL for %s: %w", key, err)
	}
	return signed, nil
}

// Probe writes an object and deletes it. The error is for the operator: it starts with what the store said
// is wrong, and names the credentials only if the store did.
func (s *Store) Probe(ctx context.Context) error {
	key, content := uuid.New(), "probe"
	err := s.Write(ctx, key, int64(len(content)), strings.NewReader(content))
	if err == nil {
		err = s.Delete(ctx, key)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.backend.explain(ctx, err), err)
	}
	return nil
}

// An Object is what List finds.
type Object struct {
	Name     string
	Key      uuid.UUID // Nil: the name is none that this package gives
	Partial  bool      // left by a write that was cut short
	Size     int64
	Modified time.Time
}

// List calls do with everything below the namespace, until it returns an error.
func (s *Store) List(ctx context.Context, do func(Object) error) error {
	return s.backend.list(ctx, s.prefix, func(o Object) error {
		o.Key, o.Partial = s.parse(o.Name)
		return do(o)
	})
}

// Unfinished calls do with every upload of a large object that was begun before a time and neither
// finished nor aborted, until it returns an error. Only S3 has them. abort deletes what was uploaded.
func (s *Store) Unfinished(ctx context.Context, before time.Time, do func(name string, abort func() error) error) error {
	return s.backend.unfinished(ctx, s.prefix, before, do)
}

// parse returns the key in a name.
func (s *Store) parse(name string) (key uuid.UUID, partial bool) {
	base := strings.TrimPrefix(name, s.prefix)
	base = base[strings.LastIndexByte(base, '/')+1:]
	if hexadecimal, rest, cut := strings.Cut(base, "."); cut && strings.HasSuffix(rest, temporarySuffix) {
		base, partial = hexadecimal, true
	}
	key, err := uuid.Parse(base)
	if err != nil || s.objectName(key) != name && !partial {
		return uuid.Nil, false
	}
	return key, partial
}
