package embeddedpg

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestStart_RefusesAFolderInUse(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	first := mustStart(t, dir)

	text := mustFail(t, testOptions(dir), ErrInUse)
	if !strings.Contains(text, dir) || !strings.Contains(text, strconv.Itoa(os.Getpid())) {
		t.Errorf("the message names neither the folder nor the process: %s", text)
	}
	oneSentence(t, text)
	if one := query[int](t, open(t, first), "SELECT 1"); one != 1 {
		t.Error("the first instance was disturbed")
	}

	mustStop(t, first)
	mustStart(t, dir)
}

// As root the test changes a folder's owner; otherwise it uses a folder of root's.
func TestStart_RefusesAnotherUsersFolder(t *testing.T) {
	t.Parallel()
	dir := "/"
	if os.Geteuid() == 0 {
		dir = newDataDir(t)
		if err := os.Mkdir(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, 54321, 54321); err != nil {
			t.Fatal(err)
		}
	}
	text := mustFail(t, testOptions(dir), ErrDataDir)
	if !strings.Contains(text, dir+" belongs to user ") {
		t.Errorf("Start: %s", text)
	}
	oneSentence(t, text)
	if exists(filepath.Join(dir, "lock")) {
		t.Error("a file was left in it")
	}
}

func TestStart_RefusesAFolderItCannotUse(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	readOnly := filepath.Join(t.TempDir(), "read-only")
	if err := os.MkdirAll(filepath.Join(readOnly, "lock"), 0o755); err != nil { // the modes of folders do not stop root
		t.Fatal(err)
	}
	if err := os.Chmod(readOnly, 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(readOnly, 0o700) })
	foreign := newDataDir(t)
	if err := os.MkdirAll(filepath.Join(foreign, "postgres", "something"), 0o711); err != nil {
		t.Fatal(err)
	}
	if account, err := chooseAccount(foreign); err != nil {
		t.Fatal(err)
	} else if err := (&folder{account: account}).chown(filepath.Join(foreign, "postgres")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ dir, want string }{
		"no name":        {"", "DATA_DIR is empty"},
		"a file":         {file, "is not a folder"},
		"below a file":   {filepath.Join(file, "data"), "cannot be created"},
		"read-only":      {readOnly, "is not writable"},
		"something else": {foreign, "does not hold PostgreSQL data"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := mustFail(t, testOptions(c.dir), ErrDataDir)
			if !strings.Contains(text, c.want) {
				t.Errorf("Start: %s, want it to say %q", text, c.want)
			}
			oneSentence(t, text)
		})
	}
	if !exists(filepath.Join(foreign, "postgres", "something")) {
		t.Error("the existing files in the folder are gone")
	}
}

func TestStart_RefusesDataOfAnotherMajorVersion(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	mustStop(t, mustStart(t, dir))
	version := filepath.Join(dataPath(dir), "PG_VERSION")
	if err := os.WriteFile(version, []byte("9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := mustFail(t, testOptions(dir), ErrDataDir)
	if !strings.Contains(text, "created by PostgreSQL 9, but only version ") {
		t.Errorf("Start: %s", text)
	}
	oneSentence(t, text)
}

// After a reboot postmaster.pid may name any process, even one of PostgreSQL's own user, which PostgreSQL takes for a
// server.
func TestStart_IgnoresAStaleProcessID(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	mustStop(t, mustStart(t, dir))
	account, err := chooseAccount(dir)
	if err != nil {
		t.Fatal(err)
	}
	id, err := account.identity()
	if err != nil {
		t.Fatal(err)
	}
	unrelated, stdin, err := startShell(id, os.Stderr, "cat")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := unrelated.Wait(); err != nil {
			t.Errorf("the other process: %v", err)
		}
	})
	pidFile := filepath.Join(dataPath(dir), "postmaster.pid")
	content := fmt.Sprintf("%d\n%s\n1700000000\n%s\n%s\n", unrelated.Process.Pid, dataPath(dir), port, filepath.Join(dir, "run"))
	if err := os.WriteFile(pidFile, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	mustStart(t, dir)
}

func TestSocketDir_FitsTheLimitOfEverySystem(t *testing.T) {
	t.Parallel()
	longest := "/" + strings.Repeat("x", maxSocketPath-len("/"+"/.s.PGSQL.5432"))
	for dir, want := range map[string]bool{
		longest:       true,
		longest + "x": false,
		"/a,b":        false,
		"relative":    false,
	} {
		if got := fitsSocket(dir); got != want {
			t.Errorf("fitsSocket(%q) is %t", dir, got)
		}
	}
}

func oneSentence(t *testing.T, text string) {
	t.Helper()
	if strings.Contains(text, "\n") || len(text) > 400 {
		t.Errorf("not one sentence: %s", text)
	}
}
