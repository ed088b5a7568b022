package objects

import (
	"os"
	"path/filepath"
)

// sync brings an object in a folder, and the name by which it is found, to the disk. The driver
// leaves both to the system, which may lose them with the power.
func (s *Store) sync(name string) error {
	path := filepath.Join(s.dir, filepath.FromSlash(name))
	if err := syncPath(path); err != nil {
		return err
	}
	if err := syncPath(filepath.Dir(path)); err != nil {
		return err
	}
	// The folders above, whoever has made them, once.
	for dir := filepath.Dir(filepath.Dir(path)); len(dir) >= len(filepath.Clean(s.dir)); dir = filepath.Dir(dir) {
		if err := s.syncOnce(filepath.Dir(path), dir); err != nil {
			return err
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	return nil
}

// syncOnce brings the name of child in dir to the disk, unless it is known to be there.
func (s *Store) syncOnce(child, dir string) error {
	if _, known := s.synced.Load(child + "\x00" + dir); known {
		return nil
	}
	if err := syncPath(dir); err != nil {
		return err
	}
	s.synced.Store(child+"\x00"+dir, true)
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
