package objectstore

import (
	"os"
	"path/filepath"
)

// sync brings an object in a folder, and the names by which it is found, to the disk. The driver
// leaves both to the system, which may lose them with the power.
func (s *Store) sync(name string) error {
	path := filepath.Join(s.dir, filepath.FromSlash(name))
	dir := filepath.Dir(path)
	for _, p := range []string{path, dir} {
		if err := s.flush(p); err != nil {
			return err
		}
	}
	// Whoever has made the folder, its name must be in those above. That is once for each.
	if _, known := s.synced.Load(dir); known {
		return nil
	}
	for above := dir; above != filepath.Clean(s.dir) && above != filepath.Dir(above); {
		above = filepath.Dir(above)
		if err := s.flush(above); err != nil {
			return err
		}
	}
	s.synced.Store(dir, true)
	return nil
}

// flush is fsync(2) of a file or folder.
func flush(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
