package embeddedpg

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// folder is the data folder, locked.
type folder struct {
	path    string // absolute, without symbolic links
	account account
	lock    *os.File
}

// openFolder creates the folder if necessary, checks its owner, and locks it.
func openFolder(path string) (*folder, error) {
	if path == "" {
		return nil, fmt.Errorf("%w: DATA_DIR is empty", ErrDataDir)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDataDir, err)
	}
	account, err := chooseAccount(dataPath(path))
	if err != nil {
		return nil, err
	}
	if err := makeFolder(path, account); err != nil {
		return nil, err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDataDir, err)
	}
	owner, err := ownerOf(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDataDir, err)
	}
	if owner != os.Geteuid() && owner != account.uid {
		return nil, fmt.Errorf("%w: %s belongs to user %s, not to %s: choose another DATA_DIR",
			ErrDataDir, path, userNameOf(owner), userNameOf(os.Geteuid()))
	}
	f := &folder{path: path, account: account}
	if f.lock, err = lockFile(filepath.Join(path, "lock")); err != nil {
		if errors.Is(err, ErrInUse) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %s is not writable: %w", ErrDataDir, path, err)
	}
	return f, nil
}

// makeFolder creates the folder for its owner only. If PostgreSQL runs as another user, that user's group may enter it,
// but not list it.
func makeFolder(path string, account account) error {
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.Mkdir(path, 0o700)
	}
	switch {
	case errors.Is(err, os.ErrExist):
		if info, err := os.Stat(path); err != nil || !info.IsDir() {
			return fmt.Errorf("%w: %s is not a folder", ErrDataDir, path)
		}
		return nil
	case err != nil:
		return fmt.Errorf("%w: it cannot be created: %w", ErrDataDir, err)
	}
	if account.dropped {
		if err := os.Chown(path, -1, account.gid); err != nil {
			return fmt.Errorf("%w: %w", ErrDataDir, err)
		}
		if err := os.Chmod(path, 0o710); err != nil {
			return fmt.Errorf("%w: %w", ErrDataDir, err)
		}
	}
	return nil
}

// lockFile takes a lock that the kernel releases when the process exits, for whatever reason. The file is never
// removed: otherwise two processes could lock two files of the same name.
func lockFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer file.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, err
		}
		holder, _ := io.ReadAll(io.LimitReader(file, 32))
		if pid, err := strconv.Atoi(strings.TrimSpace(string(holder))); err == nil {
			return nil, fmt.Errorf("%w %s (process %d)", ErrInUse, filepath.Dir(path), pid)
		}
		return nil, fmt.Errorf("%w %s", ErrInUse, filepath.Dir(path))
	}
	// The holder's process id is only for the message above.
	_ = file.Truncate(0)
	_, _ = file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return file, nil
}

func (f *folder) unlock() {
	if f.lock != nil {
		_ = f.lock.Truncate(0)
		// Closing alone would not unlock: a child that another goroutine is just starting has a copy until its exec.
		_ = syscall.Flock(int(f.lock.Fd()), syscall.LOCK_UN)
		f.lock.Close()
		f.lock = nil
	}
}

// dataVersion returns the major version that created the data; 0 if there is none yet.
func (f *folder) dataVersion() int {
	content, err := os.ReadFile(filepath.Join(dataPath(f.path), "PG_VERSION"))
	if err != nil {
		return 0
	}
	major, _ := strconv.Atoi(strings.TrimSpace(string(content)))
	return major
}

// chown makes PostgreSQL's account the owner of a folder.
func (f *folder) chown(path string) error {
	if !f.account.dropped {
		return nil
	}
	return os.Lchown(path, f.account.uid, f.account.gid)
}

// checkOwned returns an error unless PostgreSQL's account owns the folder.
func (f *folder) checkOwned(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDataDir, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%w: %s is not a folder", ErrDataDir, path)
	}
	if owner, err := ownerOf(path); err != nil || owner != f.account.uid {
		return fmt.Errorf("%w: %s belongs to user %s, not to %s: choose another DATA_DIR",
			ErrDataDir, path, userNameOf(owner), f.account.name)
	}
	return nil
}
