package embeddedpg

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// maxSocketPath is the smallest limit of a Unix socket's path on the supported systems: 104 bytes with the final NUL
// (macOS, BSD; Linux has 108).
const maxSocketPath = 103

// socketDir is the folder of the server's socket. Its mode 0700 is the only access control: the server trusts everyone
// who can open the socket, which is its own user and root.
type socketDir struct {
	path string
	temp bool
}

// makeSocketDir creates the folder in the data folder, or in a temporary folder if the data folder's path is too long
// for a socket or has a comma, which separates hosts in connection strings.
func makeSocketDir(f *folder) (socketDir, error) {
	path := filepath.Join(f.path, "run")
	if fitsSocket(path) {
		err := os.Mkdir(path, 0o700)
		switch {
		case errors.Is(err, os.ErrExist):
			if err := f.checkOwned(path); err != nil {
				return socketDir{}, err
			}
			err = os.Chmod(path, 0o700)
		case err == nil:
			err = f.chown(path)
		}
		if err != nil {
			return socketDir{}, fmt.Errorf("create the socket folder: %w", err)
		}
		return socketDir{path: path}, nil
	}

	parent := os.TempDir()
	if !fitsSocket(filepath.Join(parent, "platform-pg-0123456789")) {
		parent = "/tmp"
	}
	path, err := os.MkdirTemp(parent, "platform-pg-")
	if err == nil {
		err = f.chown(path)
	}
	if err != nil {
		return socketDir{}, fmt.Errorf("create the socket folder: %w", err)
	}
	return socketDir{path: path, temp: true}, nil
}

func fitsSocket(dir string) bool {
	return len(filepath.Join(dir, ".s.PGSQL."+port)) <= maxSocketPath && !strings.Contains(dir, ",") && filepath.IsAbs(dir)
}

// temporary returns the path if the folder must be removed at the end, otherwise "".
func (d socketDir) temporary() string {
	if d.temp {
		return d.path
	}
	return ""
}

func (d socketDir) remove() {
	if d.temp {
		_ = os.RemoveAll(d.path)
	}
}
