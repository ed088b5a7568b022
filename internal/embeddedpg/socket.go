package embeddedpg

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The shortest limit for the path of a Unix socket among the systems supported: 104 bytes
// with a final NUL (macOS, the BSDs; Linux has 108).
const maxSocketPath = 103

// socketDir is the folder of the server's socket. Its mode is 0700, and that is the whole of
// the access control: the server trusts whoever can reach the socket, which is the user it
// runs as and root.
type socketDir struct {
	path string
	temp bool
}

// makeSocketDir makes it in the data folder, or in a temporary folder if that is too long for
// a socket, or has a comma, which separates addresses in connection strings.
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
			return socketDir{}, fmt.Errorf("make the socket folder: %w", err)
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
		return socketDir{}, fmt.Errorf("make the socket folder: %w", err)
	}
	return socketDir{path: path, temp: true}, nil
}

func fitsSocket(dir string) bool {
	return len(filepath.Join(dir, ".s.PGSQL."+port)) <= maxSocketPath && !strings.Contains(dir, ",") && filepath.IsAbs(dir)
}

// temporary is the path if the folder is to be removed at the end, else "".
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
