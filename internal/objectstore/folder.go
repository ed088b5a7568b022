package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// temporarySuffix ends the name of a file that is being written, beside the object that it becomes: a
// rename works only within a file system.
const temporarySuffix = ".tmp"

// folder is a backend that keeps each object as a file, and nothing beside it.
type folder struct {
	dir    string
	synced sync.Map // folders whose names are known to be on the disk
	fsync  func(*os.File) error
}

func openFolder(path string) (*folder, error) {
	dir, err := filepath.Abs(filepath.FromSlash(path))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil { // also: it is no folder
		return nil, err
	}
	return &folder{dir: dir, fsync: (*os.File).Sync}, nil
}

func (f *folder) path(name string) string { return filepath.Join(f.dir, filepath.FromSlash(name)) }

// write renames the object into place when its bytes are on the disk, and then brings the name there. A file
// that is renamed before it is synced can be empty after a power failure.
func (f *folder) write(ctx context.Context, name string, size int64, content io.Reader) error {
	path := f.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	temporary, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*"+temporarySuffix)
	if err != nil {
		return err
	}
	written, err := io.Copy(temporary, cancellable{ctx, content})
	if err == nil && written != size {
		err = errLength
	}
	if err == nil {
		err = f.fsync(temporary)
	}
	err = errors.Join(err, temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temporary.Name()))
	}
	return f.syncNames(filepath.Dir(path))
}

// syncNames brings the names in a folder to the disk, and those of the folders that lead to it.
func (f *folder) syncNames(dir string) error {
	if err := f.syncFolder(dir); err != nil {
		return err
	}
	// Another write, or another replica, may have made the folder and not have come to this yet. So each
	// process does it once for each folder.
	if _, done := f.synced.Load(dir); done {
		return nil
	}
	for above := dir; above != f.dir && above != filepath.Dir(above); {
		above = filepath.Dir(above)
		if err := f.syncFolder(above); err != nil {
			return err
		}
	}
	f.synced.Store(dir, true)
	return nil
}

func (f *folder) syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return f.fsync(dir)
}

// cancellable is a reader that fails when ctx ends.
type cancellable struct {
	ctx context.Context // io.Reader has no other way to take one
	r   io.Reader
}

func (c cancellable) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

func (f *folder) read(_ context.Context, name string, offset int64) (io.ReadCloser, int64, error) {
	file, err := os.Open(f.path(name))
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil {
		_, err = file.Seek(offset, io.SeekStart)
	}
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, info.Size(), nil
}

func (f *folder) size(_ context.Context, name string) (int64, error) {
	info, err := os.Stat(f.path(name))
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f *folder) remove(_ context.Context, name string) error { return os.Remove(f.path(name)) }

func (*folder) signedURL(context.Context, string, time.Duration) (string, error) { return "", nil }

// list passes over what vanishes meanwhile. The prefix is that of a folder.
func (f *folder) list(ctx context.Context, prefix string, do func(Object) error) error {
	var stop error
	err := filepath.WalkDir(f.path(prefix), func(path string, entry fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		var info fs.FileInfo
		if err == nil && !entry.IsDir() {
			info, err = entry.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || entry.IsDir() {
			return err
		}
		name := filepath.ToSlash(strings.TrimPrefix(path, f.dir+string(filepath.Separator)))
		stop = do(Object{Name: name, Size: info.Size(), Modified: info.ModTime()})
		return stop
	})
	if stop == nil && err != nil {
		return fmt.Errorf("objectstore: list: %w", err)
	}
	return stop
}

func (*folder) unfinished(context.Context, string, time.Time, func(string, func() error) error) error {
	return nil
}

func (f *folder) explain(_ context.Context, err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "the platform's user may not write in the folder " + f.dir
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "there is no space left in the folder " + f.dir
	case errors.Is(err, syscall.EROFS):
		return "the file system of the folder " + f.dir + " is mounted read-only"
	}
	return "the folder " + f.dir + " cannot be written"
}
